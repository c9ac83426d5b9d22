// The instruction sets: products of bits and a comparison each, and what `vectors.inc` makes of it.

#ifndef SIMAN_VARIANTS_H_
#define SIMAN_VARIANTS_H_

#include <algorithm>
#include <cstdint>

#include "variant.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace siman {

#if defined(__x86_64__)

namespace avx512 {

#define TARGET __attribute__((target("avx512f,avx512vpopcntdq")))
constexpr int kBytes = 64;

TARGET inline uint32_t AtLeast(const float* x, float least) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(least), _CMP_GE_OQ);
}

#include "vectors.inc"


template <int kVectors>
TARGET void MultiplyBitVectors(const Taps& taps, const uint32_t* const* pixels,
                                   const uint32_t* kernel, int32_t terms, int32_t* const* y) {
  __m512i sums[kPixels][kVectors];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm512_setzero_si512();
  for (int64_t row = 0; row < taps.rows; ++row) {
    for (int64_t i = row * taps.image_row; i < row * taps.image_row + taps.values; ++i) {
      __m512i filters[kVectors];
      for (int v = 0; v < kVectors; ++v) filters[v] = _mm512_loadu_si512(kernel + v * 16);
      for (int p = 0; p < kPixels; ++p) {
        const __m512i pixel = _mm512_set1_epi32(static_cast<int>(pixels[p][i]));
        for (int v = 0; v < kVectors; ++v) {
          const __m512i ones = _mm512_popcnt_epi32(_mm512_xor_si512(filters[v], pixel));
          sums[p][v] = _mm512_add_epi32(sums[p][v], ones);
        }
      }
      kernel += taps.out;
    }
  }
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      const __m512i twice = _mm512_add_epi32(sums[p][v], sums[p][v]);
      _mm512_storeu_si512(y[p] + v * 16, _mm512_sub_epi32(_mm512_set1_epi32(terms), twice));
    }
  }
}

TARGET void MultiplyBits(const Taps& taps, const uint32_t* const* pixels,
                                  const uint32_t* kernel, int64_t filters, int32_t terms,
                                  int32_t* const* y) {
  switch (filters / 16) {
    case 1: return MultiplyBitVectors<1>(taps, pixels, kernel, terms, y);
    case 2: return MultiplyBitVectors<2>(taps, pixels, kernel, terms, y);
    case 3: return MultiplyBitVectors<3>(taps, pixels, kernel, terms, y);
    default: return MultiplyBitVectors<4>(taps, pixels, kernel, terms, y);
  }
}

#undef TARGET

}  // namespace avx512

namespace avx2 {

#define TARGET __attribute__((target("avx2,fma")))
constexpr int kBytes = 32;

TARGET inline uint32_t AtLeast(const float* x, float least) {
  return static_cast<uint32_t>(_mm256_movemask_ps(
      _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(least), _CMP_GE_OQ)));
}

#include "vectors.inc"

// Without an instruction for it, ones are looked up by half bytes and summed in bytes, which hold
// 255: 31 words of at most 8 ones each.
TARGET void MultiplyBits(const Taps& taps, const uint32_t* const* pixels,
                              const uint32_t* kernel, int64_t filters, int32_t terms,
                              int32_t* const* y) {
  const __m256i half = _mm256_set1_epi8(0x0f);
  const __m256i ones_in_half = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  for (int64_t first = 0; first < filters; first += 16) {
    const uint32_t* words = kernel + first;
    __m256i sums[kPixels][2];
    for (auto& pair : sums) pair[0] = pair[1] = _mm256_setzero_si256();
    for (int64_t row = 0; row < taps.rows; ++row) {
      for (int64_t start = 0; start < taps.values; start += 31) {
        __m256i bytes[kPixels][2];
        for (auto& pair : bytes) pair[0] = pair[1] = _mm256_setzero_si256();
        const int64_t stop = std::min<int64_t>(taps.values, start + 31);
        for (int64_t i = row * taps.image_row + start; i < row * taps.image_row + stop; ++i) {
          for (int v = 0; v < 2; ++v) {
            const __m256i filter =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + v * 8));
            for (int p = 0; p < kPixels; ++p) {
              const __m256i unequal =
                  _mm256_xor_si256(filter, _mm256_set1_epi32(static_cast<int>(pixels[p][i])));
              const __m256i low = _mm256_and_si256(unequal, half);
              const __m256i high = _mm256_and_si256(_mm256_srli_epi32(unequal, 4), half);
              const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(ones_in_half, low),
                                                   _mm256_shuffle_epi8(ones_in_half, high));
              bytes[p][v] = _mm256_add_epi8(bytes[p][v], ones);
            }
          }
          words += taps.out;
        }
        for (int p = 0; p < kPixels; ++p) {
          for (int v = 0; v < 2; ++v) {
            const __m256i pairs = _mm256_maddubs_epi16(bytes[p][v], _mm256_set1_epi8(1));
            const __m256i more = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            sums[p][v] = _mm256_add_epi32(sums[p][v], more);
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < 2; ++v) {
        const __m256i twice = _mm256_add_epi32(sums[p][v], sums[p][v]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y[p] + first + v * 8),
                            _mm256_sub_epi32(_mm256_set1_epi32(terms), twice));
      }
    }
  }
}

#undef TARGET

}  // namespace avx2

#elif defined(__aarch64__)

namespace neon {

#define TARGET
constexpr int kBytes = 16;

inline uint32_t AtLeast(const float* x, float least) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgeq_f32(vld1q_f32(x), vdupq_n_f32(least)), bits));
}

#include "vectors.inc"

// Ones are counted and summed in bytes, which hold 255: 31 words of at most 8 ones each.
void MultiplyBits(const Taps& taps, const uint32_t* const* pixels, const uint32_t* kernel,
                  int64_t filters, int32_t terms, int32_t* const* y) {
  for (int64_t first = 0; first < filters; first += 16) {
    const uint32_t* words = kernel + first;
    uint32x4_t sums[kPixels][4];
    for (auto& vectors : sums)
      for (auto& vector : vectors) vector = vdupq_n_u32(0);
    for (int64_t row = 0; row < taps.rows; ++row) {
      for (int64_t start = 0; start < taps.values; start += 31) {
        uint8x16_t bytes[kPixels][4];
        for (auto& vectors : bytes)
          for (auto& vector : vectors) vector = vdupq_n_u8(0);
        const int64_t stop = std::min<int64_t>(taps.values, start + 31);
        for (int64_t i = row * taps.image_row + start; i < row * taps.image_row + stop; ++i) {
          for (int v = 0; v < 4; ++v) {
            const uint32x4_t filter = vld1q_u32(words + v * 4);
            for (int p = 0; p < kPixels; ++p) {
              const uint32x4_t unequal = veorq_u32(filter, vdupq_n_u32(pixels[p][i]));
              bytes[p][v] = vaddq_u8(bytes[p][v], vcntq_u8(vreinterpretq_u8_u32(unequal)));
            }
          }
          words += taps.out;
        }
        for (int p = 0; p < kPixels; ++p)
          for (int v = 0; v < 4; ++v)
            sums[p][v] = vpadalq_u16(sums[p][v], vpaddlq_u8(bytes[p][v]));
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < 4; ++v) {
        const int32x4_t unequal = vreinterpretq_s32_u32(sums[p][v]);
        vst1q_s32(y[p] + first + v * 4, vmlsq_n_s32(vdupq_n_s32(terms), unequal, 2));
      }
    }
  }
}

#undef TARGET

}  // namespace neon

#endif

#define SIMAN_VARIANT(name, supported)                                                         \
  {                                                                                            \
    #name, supported, name::MultiplyBits, name::MultiplyFloats, name::AddBorder,               \
        name::FinishUnit, name::Normalize, name::Pack, name::Max3, name::Unfold, name::Add     \
  }

// The fastest first; behind them one without a name.
inline const Variant kVariants[] = {
#if defined(__x86_64__)
    SIMAN_VARIANT(avx512, __builtin_cpu_supports("avx512vpopcntdq") != 0),
    SIMAN_VARIANT(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
#elif defined(__aarch64__)
    SIMAN_VARIANT(neon, true),
#endif
    {},
};

#undef SIMAN_VARIANT

}  // namespace siman

#endif  // SIMAN_VARIANTS_H_
