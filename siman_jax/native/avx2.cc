// AVX2 with FMA.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "variants.h"

#define SIMAN_TARGET __attribute__((target("avx2,bmi2,fma")))

namespace siman::avx2 {

constexpr int kBytes = 32;

#include "vectors.inc"

SIMAN_TARGET inline uint32_t AtLeast(const float* x, float least) {
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(least), _CMP_GE_OQ)));
}

#include "packed.inc"

// The bytes of four vectors. Compilers would take each number out of its vector.
SIMAN_TARGET inline void ManyToBytes(const float* x, float least, uint8_t* bytes) {
  const __m256 limit = _mm256_set1_ps(least);
  __m256i flags[4];
  for (int v = 0; v < 4; ++v)
    flags[v] = _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + v * 8), limit, _CMP_GE_OQ));
  // Packing keeps the halves of registers apart.
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(flags[0], flags[1]),
                                            _mm256_packs_epi32(flags[2], flags[3]));
  const __m256i ordered =
      _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes),
                      _mm256_and_si256(ordered, _mm256_set1_epi8(kBit)));
}
#define SIMAN_MANY_TO_BYTES ManyToBytes

// Compilers would widen the halves one by one.
SIMAN_TARGET inline Floats ShortsToFloats(const int16_t* x) {
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(
      _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)))));
}
#define SIMAN_SHORTS_TO_FLOATS ShortsToFloats

// How many of four bits differ, for both halves of a byte and all halves of another byte.
struct Counts {
  constexpr Counts() : rows() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int i = 0; i < kCountsOfEight; ++i) {
        int differ = (i < kSums ? byte : byte >> 4) ^ i;
        for (int bit = 0; bit < 4; ++bit, differ >>= 1)
          rows[byte * kCountsOfEight + i] =
              static_cast<uint8_t>(rows[byte * kCountsOfEight + i] + (differ & 1));
      }
    }
    for (int i = 0; i < kCountsOfEight; ++i) rows[kNoEight + i] = 2;
  }
  alignas(32) uint8_t rows[kNoEight + kCountsOfEight];
};
constexpr Counts kCounts;

SIMAN_TARGET void Eights(int64_t length, const float* x, float least, uint16_t* places) {
  for (int64_t i = 0; i < length; i += kEight)
    *places++ = static_cast<uint16_t>(AtLeast(x + i, least) * kCountsOfEight);
}

// For kPixels pixels and kBlocks blocks of filters.
template <int kPixels, int kBlocks>
SIMAN_TARGET inline void MultiplyEightsOf(int64_t values, const int32_t* offsets, int64_t step,
                                          const uint16_t* places, const uint8_t* kernel,
                                          int64_t y_step, int16_t* y) {
  constexpr int64_t kMost = 63;  // counts of at most four that a byte can hold
  const uint16_t* at[kPixels];
  for (int p = 0; p < kPixels; ++p) at[p] = places + p * step;
  __m256i all = _mm256_set1_epi16(static_cast<int16_t>(values * kEight));
  for (int64_t begin = 0; begin < values; begin += kMost) {
    const int64_t end = std::min(values, begin + kMost);
    __m256i bytes[kPixels][kBlocks];
    for (auto& counts : bytes)
      for (auto& block : counts) block = _mm256_setzero_si256();
    for (int64_t i = begin; i < end; ++i, kernel += kBlocks * kCountsOfEight) {
      const int64_t offset = offsets[i];
      __m256i filters[kBlocks];
      for (int b = 0; b < kBlocks; ++b)
        filters[b] =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kernel + b * kCountsOfEight));
      for (int p = 0; p < kPixels; ++p) {
        const __m256i counts =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(kCounts.rows + at[p][offset]));
        for (int b = 0; b < kBlocks; ++b)
          bytes[p][b] = _mm256_add_epi8(bytes[p][b], _mm256_shuffle_epi8(counts, filters[b]));
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int b = 0; b < kBlocks; ++b) {
        auto* to = reinterpret_cast<__m256i*>(y + p * y_step + b * kTableFilters);
        const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes[p][b]));
        const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes[p][b], 1));
        const __m256i counts = _mm256_add_epi16(low, high);
        const __m256i rest = begin == 0 ? all : _mm256_loadu_si256(to);
        _mm256_storeu_si256(to, _mm256_sub_epi16(rest, _mm256_add_epi16(counts, counts)));
      }
    }
  }
}

template <int kBlocks>
SIMAN_TARGET void MultiplyEightsFor(int64_t values, const int32_t* offsets, int64_t pixels,
                                    int64_t step, const uint16_t* places, const uint8_t* kernel,
                                    int64_t y_step, int16_t* y) {
  constexpr int kMany = 8 / kBlocks;
  int64_t p = 0;
  for (; p + kMany <= pixels; p += kMany)
    MultiplyEightsOf<kMany, kBlocks>(values, offsets, step, places + p * step, kernel, y_step,
                                     y + p * y_step);
  for (; p + 2 <= pixels; p += 2)
    MultiplyEightsOf<2, kBlocks>(values, offsets, step, places + p * step, kernel, y_step,
                                 y + p * y_step);
  if (p < pixels)
    MultiplyEightsOf<1, kBlocks>(values, offsets, step, places + p * step, kernel, y_step,
                                 y + p * y_step);
}

SIMAN_TARGET void MultiplyEights(int64_t values, const int32_t* offsets, int64_t pixels,
                                 int64_t step, const uint16_t* places, int64_t blocks,
                                 const uint8_t* kernel, int64_t y_step, int16_t* y) {
  (blocks == 2 ? MultiplyEightsFor<2> : MultiplyEightsFor<1>)(values, offsets, pixels, step, places,
                                                              kernel, y_step, y);
}
#define SIMAN_BY_EIGHTS Eights, MultiplyEights

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

// Products of bits by tables: for the half byte of a pixel, a table says in how many bits it
// differs from each half byte of a kernel. One look-up counts 4 bits of 32 filters, so a byte of
// the kernel has to belong to one filter: a vector holds the same byte of the words of 32 filters.
// The filters after the last 32 are left to `MultiplyBits`.
constexpr int64_t kTogether = 32;  // filters of a vector

struct Tables {
  alignas(32) uint8_t differing[16][32];  // the same table in both halves of a vector
};

constexpr Tables MakeTables() {
  Tables tables{};
  for (int pixel = 0; pixel < 16; ++pixel)
    for (int i = 0; i < 32; ++i) {
      const int differ = pixel ^ (i % 16);
      tables.differing[pixel][i] = static_cast<uint8_t>((differ & 1) + (differ >> 1 & 1) +
                                                        (differ >> 2 & 1) + (differ >> 3));
    }
  return tables;
}

constexpr Tables kTables = MakeTables();

// The table for half byte `index` of a word.
SIMAN_TARGET inline __m256i TableFor(uint32_t word, int index) {
  const int right = (4 * index + 27) % 32;  // leaves the half byte times 32, the size of a table
  const uint32_t offset = (word >> right | word << (32 - right) % 32) & 15 * 32;
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(kTables.differing[0] + offset));
}

void ArrangeBits(int64_t values, int64_t filters, uint32_t* kernel) {
  for (int64_t value = 0; value < values; ++value, kernel += filters) {
    for (int64_t first = 0; first + kTogether <= filters; first += kTogether) {
      uint32_t words[kTogether];
      std::copy_n(kernel + first, kTogether, words);
      auto* bytes = reinterpret_cast<uint8_t*>(kernel + first);
      for (int byte = 0; byte < 4; ++byte)
        for (const uint32_t word : words) *bytes++ = static_cast<uint8_t>(word >> 8 * byte);
    }
  }
}

// Subtracts twice the counts of a vector of filters from their sums. `even` and `odd` are counts of
// every other filter.
SIMAN_TARGET inline void SubtractTwice(__m256i even, __m256i odd, int32_t* y) {
  const __m256i first = _mm256_unpacklo_epi16(even, odd);  // 0 to 7, 16 to 23
  const __m256i second = _mm256_unpackhi_epi16(even, odd);
  const __m128i eights[] = {_mm256_castsi256_si128(first), _mm256_castsi256_si128(second),
                            _mm256_extracti128_si256(first, 1),
                            _mm256_extracti128_si256(second, 1)};
  for (const __m128i& eight : eights) {
    const __m256i counts = _mm256_cvtepu16_epi32(eight);
    auto* to = reinterpret_cast<__m256i*>(y);
    _mm256_storeu_si256(to,
                        _mm256_sub_epi32(_mm256_loadu_si256(to), _mm256_add_epi32(counts, counts)));
    y += 8;
  }
}

// Counts are summed in bytes, which hold those of 7 words, at most 32 in each, then in 16 bits,
// which hold those of 2047.
template <int kVectors>
SIMAN_TARGET void MultiplyTables(const Taps& taps, const uint32_t* const* pixels,
                                 const uint32_t* kernel, int32_t terms, int32_t* const* y) {
  constexpr int64_t kInBytes = 7, kInShorts = 2047 / kInBytes;
  const __m256i half = _mm256_set1_epi8(0x0f), low = _mm256_set1_epi16(0xff);
  __m256i shorts[kPixels][kVectors][2];
  int64_t summed = 0;  // groups of words, in shorts
  for (int p = 0; p < kPixels; ++p) {
    std::fill_n(y[p], kVectors * kTogether, terms);
    for (auto& pair : shorts[p]) pair[0] = pair[1] = _mm256_setzero_si256();
  }
  for (int64_t row = 0; row < taps.rows; ++row) {
    for (int64_t start = 0; start < taps.values; start += kInBytes) {
      __m256i bytes[kPixels][kVectors];
      for (auto& all : bytes)
        for (auto& one : all) one = _mm256_setzero_si256();
      const int64_t stop = std::min(taps.values, start + kInBytes);
      for (int64_t i = row * taps.image_row + start; i < row * taps.image_row + stop; ++i) {
        const auto* vectors = reinterpret_cast<const __m256i*>(kernel);
#pragma GCC unroll 8
        for (int index = 0; index < 8; ++index) {
          __m256i halves[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            const __m256i both = _mm256_loadu_si256(vectors + 4 * v + index / 2);
            halves[v] = _mm256_and_si256(index % 2 == 0 ? both : _mm256_srli_epi32(both, 4), half);
          }
          for (int p = 0; p < kPixels; ++p) {
            const __m256i table = TableFor(pixels[p][i], index);
            for (int v = 0; v < kVectors; ++v) {
              bytes[p][v] = _mm256_add_epi8(bytes[p][v], _mm256_shuffle_epi8(table, halves[v]));
              // The compiler would otherwise collect all counts of a word before it adds them.
              asm("" : "+x"(bytes[p][v]));
            }
          }
        }
        kernel += taps.out;
      }
      const bool full = ++summed == kInShorts;
      for (int p = 0; p < kPixels; ++p) {
        for (int v = 0; v < kVectors; ++v) {
          __m256i* pair = shorts[p][v];
          pair[0] = _mm256_add_epi16(pair[0], _mm256_and_si256(bytes[p][v], low));
          pair[1] = _mm256_add_epi16(pair[1], _mm256_srli_epi16(bytes[p][v], 8));
          if (!full) continue;
          SubtractTwice(pair[0], pair[1], y[p] + v * kTogether);
          pair[0] = pair[1] = _mm256_setzero_si256();
        }
      }
      if (full) summed = 0;
    }
  }
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kVectors; ++v)
      SubtractTwice(shorts[p][v][0], shorts[p][v][1], y[p] + v * kTogether);
}

SIMAN_TARGET void MultiplyArranged(const Taps& taps, const uint32_t* const* pixels,
                                   const uint32_t* kernel, int64_t filters, int32_t terms,
                                   int32_t* const* y) {
  if (filters == 2 * kTogether) return MultiplyTables<2>(taps, pixels, kernel, terms, y);
  const int64_t by_tables = filters / kTogether * kTogether;
  if (by_tables != 0) MultiplyTables<1>(taps, pixels, kernel, terms, y);
  if (by_tables == filters) return;
  int32_t* rest[kPixels];
  for (int p = 0; p < kPixels; ++p) rest[p] = y[p] + by_tables;
  MultiplyBits(taps, pixels, kernel + by_tables, filters - by_tables, terms, rest);
}

bool Supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma");
}

const Variant kVariant = {"avx2",  Supported,   SIMAN_LOOPS,     &kTraining,
                          nullptr, ArrangeBits, MultiplyArranged};

}  // namespace siman::avx2

#endif  // __x86_64__
