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

// The sign of number `bit` of four in each of the sixteen sums.
SIMAN_TARGET inline __m512 SignsOf(int bit) {
  const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 plus = _mm512_test_epi32_mask(places, _mm512_set1_epi32(1 << bit));
  return _mm512_mask_blend_ps(plus, _mm512_set1_ps(-1.0f), _mm512_set1_ps(1.0f));
}

SIMAN_TARGET void PixelTables(int64_t pixels, int64_t fours, const float* g, int64_t g_step,
                              const float* scale, float* to, int64_t to_step) {
  const __m512 a = SignsOf(0), b = SignsOf(1), c = SignsOf(2), d = SignsOf(3);
  for (int64_t p = 0; p < pixels; ++p, g += g_step, to += to_step) {
    for (int64_t four = 0; four < fours; four += 4) {
      float own[16];  // each is broadcast from here
      _mm512_storeu_ps(
          own, _mm512_mul_ps(_mm512_loadu_ps(g + 4 * four), _mm512_loadu_ps(scale + 4 * four)));
      for (int i = 0; i < 4; ++i) {
        const float* x = own + 4 * i;
        __m512 sums = _mm512_mul_ps(a, _mm512_set1_ps(x[0]));
        sums = _mm512_fmadd_ps(b, _mm512_set1_ps(x[1]), sums);
        sums = _mm512_fmadd_ps(c, _mm512_set1_ps(x[2]), sums);
        sums = _mm512_fmadd_ps(d, _mm512_set1_ps(x[3]), sums);
        _mm512_storeu_ps(to + (four + i) * 16, sums);
      }
    }
  }
}

template <int kPixels>
SIMAN_TARGET void AddPixelsOf(int64_t channels, int64_t taps, const float* const* tables,
                              int64_t first, int64_t table_step, int64_t fours,
                              const uint32_t* const* places, bool fresh, float* sums,
                              int64_t sums_step) {
  for (int64_t c = 0; c < channels; c += 16) {
    __m512 own[kPixels];
    for (int p = 0; p < kPixels; ++p)
      own[p] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + p * sums_step + c);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* table = tables[tap] + first;
      // The lookup uses the lowest four bits of each.
      __m512i place = _mm512_loadu_si512(places[tap] + c);
      for (int64_t four = 0; four < fours; ++four, table += 16) {
        for (int p = 0; p < kPixels; ++p)
          own[p] = _mm512_add_ps(
              own[p], _mm512_permutexvar_ps(place, _mm512_loadu_ps(table + p * table_step)));
        place = _mm512_srli_epi32(place, 4);
      }
    }
    for (int p = 0; p < kPixels; ++p) _mm512_storeu_ps(sums + p * sums_step + c, own[p]);
  }
}

SIMAN_TARGET void AddPixels(int64_t pixels, int64_t channels, int64_t taps,
                            const float* const* tables, int64_t table_step, int64_t fours,
                            const uint32_t* const* places, bool fresh, float* sums,
                            int64_t sums_step) {
  constexpr int64_t kMost = 8;
  for (int64_t p = 0; p < pixels;) {
    // In parts of equal size, so that the last one is not small.
    const int64_t parts = (pixels - p + kMost - 1) / kMost, own = (pixels - p + parts - 1) / parts;
#define SIMAN_CASE(n)                                                                        \
  case n:                                                                                    \
    AddPixelsOf<n>(channels, taps, tables, p * table_step, table_step, fours, places, fresh, \
                   sums + p * sums_step, sums_step);                                         \
    break;
    switch (own) {
      SIMAN_CASE(1)
      SIMAN_CASE(2)
      SIMAN_CASE(3)
      SIMAN_CASE(4)
      SIMAN_CASE(5)
      SIMAN_CASE(6)
      SIMAN_CASE(7)
      SIMAN_CASE(8)
    }
#undef SIMAN_CASE
    p += own;
  }
}

#define SIMAN_BY_PIXELS PixelTables, AddPixels
#define SIMAN_BY_EIGHTS nullptr, nullptr
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

bool Supported() { return __builtin_cpu_supports("avx512vpopcntdq") != 0; }

const Variant kVariant = {"avx512", Supported, SIMAN_LOOPS, &kTraining, nullptr};

}  // namespace siman::avx512

#endif  // __x86_64__
