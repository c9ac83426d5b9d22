// AVX-512 with VPOPCNTDQ, which counts the ones of 16 words at once.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "variants.h"

#define SIMAN_TARGET __attribute__((target("avx512f,avx512vpopcntdq")))

namespace siman::avx512 {

constexpr int kBytes = 64;

#include "vectors.inc"

SIMAN_TARGET inline uint32_t AtLeast(const float* x, float least) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(least), _CMP_GE_OQ);
}

#include "packed.inc"
#include "training.inc"

template <int kVectors>
SIMAN_TARGET void MultiplyBitVectors(const Taps& taps, const uint32_t* const* pixels,
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

SIMAN_TARGET void MultiplyBits(const Taps& taps, const uint32_t* const* pixels,
                               const uint32_t* kernel, int64_t filters, int32_t terms,
                               int32_t* const* y) {
  switch (filters / 16) {
    case 1: return MultiplyBitVectors<1>(taps, pixels, kernel, terms, y);
    case 2: return MultiplyBitVectors<2>(taps, pixels, kernel, terms, y);
    case 3: return MultiplyBitVectors<3>(taps, pixels, kernel, terms, y);
    default: return MultiplyBitVectors<4>(taps, pixels, kernel, terms, y);
  }
}

const Variant kVariant = {"avx512", __builtin_cpu_supports("avx512vpopcntdq") != 0, SIMAN_LOOPS, &kTraining};

}  // namespace siman::avx512

#endif  // __x86_64__
