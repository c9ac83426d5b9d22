// Convolution of bits on XLA's CPU backend, by xor and population count over vectors of filters.
// It gives exactly what `kernels.conv_by_popcount` gives; the layouts are described there.
//
// An instruction set contributes one function, which multiplies a few pixels by a block of filters;
// which one, is decided when the program runs. The rest is plain C++.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kWordBits = 32;
constexpr int64_t kLanes = 16;    // filters come in multiples of this
constexpr int64_t kFilters = 64;  // most filters and
constexpr int64_t kPixels = 4;    // pixels of one multiplication: their sums fill the registers

// A kernel beside a padded image of words. Below one row of taps the words of both are contiguous.
struct Taps {
  int64_t rows;       // of the kernel
  int64_t words;      // in one of its rows: kernel width * words of a pixel
  int64_t image_row;  // words between two rows of the padded image
  int64_t out;        // words between two words of one filter: how many filters there are
};

// y[p][f] = terms - 2 * (number of unequal bits between filter f and what it meets at pixels[p]),
// for kPixels pixels and `filters` filters: their product, were there no padding.
using Multiply = void (*)(const Taps&, const uint32_t* const* pixels, const uint32_t* kernel,
                          int64_t filters, int32_t terms, int32_t* const* y);

#if defined(__x86_64__)
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vpopcntdq")))
#define TARGET_AVX2 __attribute__((target("avx2")))

template <int kVectors>
TARGET_AVX512 void MultiplyVectors(const Taps& taps, const uint32_t* const* pixels,
                                   const uint32_t* kernel, int32_t terms, int32_t* const* y) {
  __m512i sums[kPixels][kVectors];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm512_setzero_si512();
  for (int64_t row = 0; row < taps.rows; ++row) {
    for (int64_t i = row * taps.image_row; i < row * taps.image_row + taps.words; ++i) {
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

TARGET_AVX512 void MultiplyAvx512(const Taps& taps, const uint32_t* const* pixels,
                                  const uint32_t* kernel, int64_t filters, int32_t terms,
                                  int32_t* const* y) {
  switch (filters / 16) {
    case 1: return MultiplyVectors<1>(taps, pixels, kernel, terms, y);
    case 2: return MultiplyVectors<2>(taps, pixels, kernel, terms, y);
    case 3: return MultiplyVectors<3>(taps, pixels, kernel, terms, y);
    default: return MultiplyVectors<4>(taps, pixels, kernel, terms, y);
  }
}

// Without an instruction for it, ones are looked up by half bytes and summed in bytes, which hold
// 255: 31 words of at most 8 ones each.
TARGET_AVX2 void MultiplyAvx2(const Taps& taps, const uint32_t* const* pixels,
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
      for (int64_t start = 0; start < taps.words; start += 31) {
        __m256i bytes[kPixels][2];
        for (auto& pair : bytes) pair[0] = pair[1] = _mm256_setzero_si256();
        const int64_t stop = std::min<int64_t>(taps.words, start + 31);
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

#elif defined(__aarch64__)

// Ones are counted and summed in bytes, which hold 255: 31 words of at most 8 ones each.
void MultiplyNeon(const Taps& taps, const uint32_t* const* pixels, const uint32_t* kernel,
                  int64_t filters, int32_t terms, int32_t* const* y) {
  for (int64_t first = 0; first < filters; first += 16) {
    const uint32_t* words = kernel + first;
    uint32x4_t sums[kPixels][4];
    for (auto& vectors : sums)
      for (auto& vector : vectors) vector = vdupq_n_u32(0);
    for (int64_t row = 0; row < taps.rows; ++row) {
      for (int64_t start = 0; start < taps.words; start += 31) {
        uint8x16_t bytes[kPixels][4];
        for (auto& vectors : bytes)
          for (auto& vector : vectors) vector = vdupq_n_u8(0);
        const int64_t stop = std::min<int64_t>(taps.words, start + 31);
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
#endif

struct Variant {
  const char* name;
  bool supported;
  Multiply multiply;
};

// The instruction sets that this file has a variant for, the fastest first.
const Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512", __builtin_cpu_supports("avx512vpopcntdq") != 0, MultiplyAvx512},
    {"avx2", __builtin_cpu_supports("avx2") != 0, MultiplyAvx2},
#elif defined(__aarch64__)
    {"neon", true, MultiplyNeon},
#endif
    {nullptr, false, nullptr},
};

// Calls body(0) to body(n - 1), each once, on XLA's threads and this one. Threads of the pool that
// come late find nothing left to do, so nobody waits for a thread that waits itself.
template <typename Body>
void ParallelFor(ffi::ThreadPool& pool, int64_t n, const Body& body) {
  struct State {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto state = std::make_shared<State>();
  auto work = [state, n, &body] {
    for (int64_t i; (i = state->next.fetch_add(1)) < n;) {
      body(i);
      state->finished.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  while (state->finished.load(std::memory_order_acquire) < n) std::this_thread::yield();
}

// Packs bytes 0 or 1 into words; bits beyond `length` are 0.
void PackBits(const uint8_t* bytes, int64_t length, uint32_t* words) {
  auto pack_eight = [](const uint8_t* from) {
    uint64_t eight;
    std::memcpy(&eight, from, 8);
    // The product moves the lowest bit of byte i to bit 56 + i; no two terms meet there.
    return static_cast<uint32_t>(eight * 0x0102040810204080 >> 56);
  };
  for (; length >= kWordBits; length -= kWordBits, bytes += kWordBits)
    *words++ = pack_eight(bytes) | pack_eight(bytes + 8) << 8 | pack_eight(bytes + 16) << 16 |
               pack_eight(bytes + 24) << 24;
  if (length == 0) return;
  uint32_t word = 0;
  int64_t i = 0;
  for (; i + 8 <= length; i += 8) word |= pack_eight(bytes + i) << i;
  for (; i < length; ++i) word |= static_cast<uint32_t>(bytes[i]) << i;
  *words = word;
}

// Sizes of one convolution. `padded` is the image in words, with its border.
struct Sizes {
  int64_t batch, height, width, channels;  // of the image
  int64_t padded_height, padded_width, words;
  int64_t taps_down, taps_across;
  int64_t rows, columns, out;  // of the result
  int64_t top, left, stride;
};

// Packs one row of the padded image.
void PackRow(const Sizes& n, int64_t index, const uint8_t* bits, uint32_t* padded) {
  const int64_t sample = index / n.padded_height, row = index % n.padded_height - n.top;
  uint32_t* to = padded + index * n.padded_width * n.words;
  std::fill_n(to, n.padded_width * n.words, 0);
  if (row < 0 || row >= n.height) return;
  const uint8_t* from = bits + (sample * n.height + row) * n.width * n.channels;
  to += n.left * n.words;
  if (n.channels % kWordBits == 0) return PackBits(from, n.width * n.channels, to);
  for (int64_t x = 0; x < n.width; ++x)
    PackBits(from + x * n.channels, n.channels, to + x * n.words);
}

// A padded tap is all bits 0, so it has counted minus the kernel's sum there; adds that back for
// the result whose first tap meets (row, column) of the padded image.
void AddPadding(const Sizes& n, int64_t row, int64_t column, const int32_t* corner_sums,
                int64_t filters, int32_t* y) {
  // The taps that meet the image: those from row r0 and column c0, up to r1 and c1.
  const int64_t r0 = std::clamp<int64_t>(n.top - row, 0, n.taps_down);
  const int64_t r1 = std::clamp<int64_t>(n.top + n.height - row, 0, n.taps_down);
  const int64_t c0 = std::clamp<int64_t>(n.left - column, 0, n.taps_across);
  const int64_t c1 = std::clamp<int64_t>(n.left + n.width - column, 0, n.taps_across);
  if (r1 - r0 == n.taps_down && c1 - c0 == n.taps_across) return;
  auto sums = [&](int64_t rows, int64_t columns) {
    return corner_sums + (rows * (n.taps_across + 1) + columns) * n.out;
  };
  const int32_t *all = sums(n.taps_down, n.taps_across), *inner = sums(r1, c1),
                *above = sums(r0, c1), *before = sums(r1, c0), *both = sums(r0, c0);
  for (int64_t f = 0; f < filters; ++f)
    y[f] += all[f] - (inner[f] - above[f] - before[f] + both[f]);
}

// Results from `begin` to `end`, counted over samples, rows and columns, for a block of filters.
void MultiplyPart(const Sizes& n, Multiply multiply, int64_t begin, int64_t end, int64_t filter,
                  const uint32_t* padded, const uint32_t* kernel, const int32_t* corner_sums,
                  int32_t* y) {
  const int64_t image_row = n.padded_width * n.words;
  const Taps taps{n.taps_down, n.taps_across * n.words, image_row, n.out};
  const int64_t filters = std::min(kFilters, n.out - filter);
  const auto terms = static_cast<int32_t>(n.taps_down * n.taps_across * n.channels);
  int64_t sample = begin / (n.rows * n.columns), row = begin / n.columns % n.rows,
          column = begin % n.columns;
  for (int64_t first = begin; first < end; first += kPixels) {
    const int64_t pixels = std::min(kPixels, end - first);
    int64_t rows[kPixels], columns[kPixels];
    const uint32_t* seen[kPixels];
    int32_t* results[kPixels];
    for (int64_t p = 0; p < kPixels; ++p) {
      if (p >= pixels) {  // repeats one, for want of more
        seen[p] = seen[p - 1];
        results[p] = results[p - 1];
        continue;
      }
      rows[p] = row * n.stride;
      columns[p] = column * n.stride;
      seen[p] =
          padded + (sample * n.padded_height + rows[p]) * image_row + columns[p] * n.words;
      results[p] = y + (first + p) * n.out + filter;
      if (++column == n.columns) {
        column = 0;
        if (++row == n.rows) {
          row = 0;
          ++sample;
        }
      }
    }
    multiply(taps, seen, kernel + filter, filters, terms, results);
    for (int64_t p = 0; p < pixels; ++p)
      AddPadding(n, rows[p], columns[p], corner_sums + filter, filters, results[p]);
  }
}

using Bits = ffi::Buffer<ffi::PRED, 4>;
using Words = ffi::Buffer<ffi::U32, 4>;
using Sums = ffi::Buffer<ffi::S32, 3>;
using Products = ffi::Buffer<ffi::S32, 4>;

ffi::Error BinaryConv(ffi::ThreadPool pool, Bits bits, Words kernel, Sums corner_sums,
                      ffi::Result<Products> y, ffi::Result<Words> padded, int64_t variant,
                      int64_t stride, int64_t top, int64_t left) {
  const auto image = bits.dimensions(), words = padded->dimensions(), taps = kernel.dimensions(),
             to = y->dimensions();
  const Sizes n{image[0], image[1], image[2], image[3], words[1], words[2], words[3],
                taps[0],  taps[1],  to[1],    to[2],    to[3],    top,      left,    stride};
  if (n.out % kLanes != 0) return ffi::Error::InvalidArgument("filters come in multiples of 16");

  ParallelFor(pool, n.batch * n.padded_height, [&](int64_t index) {
    PackRow(n, index, reinterpret_cast<const uint8_t*>(bits.typed_data()), padded->typed_data());
  });
  // Some parts for every thread, so that all end at about the same time.
  const int64_t results = n.batch * n.rows * n.columns;
  if (results == 0 || n.out == 0) return ffi::Error::Success();
  const int64_t blocks = (n.out + kFilters - 1) / kFilters;
  const int64_t wanted = std::max<int64_t>(1, 4 * pool.num_threads() / blocks);
  const int64_t part = ((results + wanted - 1) / wanted + kPixels - 1) / kPixels * kPixels;
  const int64_t parts = (results + part - 1) / part;
  ParallelFor(pool, blocks * parts, [&](int64_t index) {
    const int64_t begin = index / blocks * part;
    MultiplyPart(n, kVariants[variant].multiply, begin, std::min(results, begin + part),
                 index % blocks * kFilters, padded->typed_data(), kernel.typed_data(),
                 corner_sums.typed_data(), y->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" {

// Name of a variant, in order of speed; null beyond the last one.
const char* siman_variant_name(int index) { return kVariants[index].name; }

int siman_variant_supported(int index) { return kVariants[index].supported; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_binary_conv, BinaryConv,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Bits>()
                                  .Arg<Words>()
                                  .Arg<Sums>()
                                  .Ret<Products>()
                                  .Ret<Words>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
}
