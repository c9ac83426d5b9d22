// AVX2 with FMA.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "variants.h"

#define SIMAN_TARGET __attribute__((target("avx2,fma")))

namespace siman::avx2 {

constexpr int kBytes = 32;

#include "vectors.inc"

SIMAN_TARGET inline uint32_t AtLeast(const float* x, float least) {
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(least), _CMP_GE_OQ)));
}

#include "packed.inc"
// No register can hold a table of sixteen floats.
#define SIMAN_BY_PIXELS nullptr, nullptr
#include "training.inc"

// There is no instruction to count ones, so they are looked up by half bytes. Counts are summed in
// bytes, which hold up to 255: 31 words of at most 8 ones per byte.
SIMAN_TARGET void MultiplyBits(const Taps& taps, const uint32_t* const* pixels,
                               const uint32_t* kernel, int64_t filters, int32_t terms,
                               int32_t* const* y) {
  const __m256i half = _mm256_set1_epi8(0x0f);
  const __m256i ones_in_half =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
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

bool Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const Variant kVariant = {"avx2", Supported, SIMAN_LOOPS, &kTraining, nullptr};

}  // namespace siman::avx2

#endif  // __x86_64__
