// The convolution of bits alone: from a bool a bit to an int32 a result.

#ifndef SIMAN_BINARY_CONV_H_
#define SIMAN_BINARY_CONV_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "convolution.h"
#include "threads.h"
#include "variants.h"
#include "xla/ffi/api/ffi.h"

namespace siman {

namespace ffi = xla::ffi;

using Bits = ffi::Buffer<ffi::PRED, 4>;
using Words = ffi::Buffer<ffi::U32, 4>;
using CornerSums = ffi::Buffer<ffi::S32, 3>;
using Products = ffi::Buffer<ffi::S32, 4>;

// Packs bytes 0 or 1 into words; bits beyond `length` are 0.
inline void PackBytes(const uint8_t* bytes, int64_t length, uint32_t* words) {
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

// Packs one row of the padded images, counted over samples.
inline void PackRow(const Convolution& n, int64_t channels, int64_t index, const uint8_t* bits,
                    uint32_t* padded) {
  const int64_t sample = index / n.padded_height, row = index % n.padded_height - n.top;
  uint32_t* to = padded + index * n.image_row();
  std::fill_n(to, n.image_row(), 0);
  if (row < 0 || row >= n.height) return;
  const uint8_t* from = bits + (sample * n.height + row) * n.width * channels;
  to += n.left * n.depth;
  if (channels % kWordBits == 0) return PackBytes(from, n.width * channels, to);
  for (int64_t x = 0; x < n.width; ++x) PackBytes(from + x * channels, channels, to + x * n.depth);
}

inline ffi::Error BinaryConv(ffi::ThreadPool pool, Bits bits, Words kernel, CornerSums corner_sums,
                             ffi::Result<Products> y, ffi::Result<Words> padded, int64_t variant,
                             int64_t stride, int64_t top, int64_t left) {
  const auto image = bits.dimensions(), words = padded->dimensions(), taps = kernel.dimensions(),
             to = y->dimensions();
  const int64_t batch = image[0], channels = image[3];
  const Convolution n{image[1], image[2], words[1], words[2], words[3], taps[0], taps[1],
                      to[1],    to[2],    to[3],    top,      left,     stride};
  if (n.out % kLanes != 0) return ffi::Error::InvalidArgument("filters come in multiples of 16");
  const int64_t results = batch * n.results();
  if (results == 0 || n.out == 0) return ffi::Error::Success();

  auto pack = [&](int64_t index, int64_t) {
    PackRow(n, channels, index, reinterpret_cast<const uint8_t*>(bits.typed_data()),
            padded->typed_data());
  };
  // Some parts for every thread, so that all end at about the same time.
  const int64_t workers = Workers(pool);
  const int64_t blocks = (n.out + kFilters - 1) / kFilters;
  const int64_t wanted = std::max<int64_t>(1, 4 * workers / blocks);
  const int64_t part = RoundUp((results + wanted - 1) / wanted, kPixels);
  const int64_t parts = (results + part - 1) / part;
  auto multiply = [&](int64_t task, int64_t) {
    const int64_t begin = task / blocks * part, filter = task % blocks * kFilters;
    const int64_t filters = std::min(kFilters, n.out - filter);
    ForGroups(n, begin, std::min(results, begin + part), [&](int64_t first, const Group& group) {
      int32_t* sums[kPixels];
      for (int64_t p = 0; p < kPixels; ++p)
        sums[p] = y->typed_data() + (first + std::min(p, group.count - 1)) * n.out + filter;
      MultiplyGroup(*kVariants[variant], n, n.taps(n.out), group, channels, filters,
                    padded->typed_data(), kernel.typed_data() + filter,
                    corner_sums.typed_data() + filter, sums);
    });
  };
  RunPhases(pool, workers, {{batch * n.padded_height, pack}, {blocks * parts, multiply}});
  return ffi::Error::Success();
}

}  // namespace siman

#endif  // SIMAN_BINARY_CONV_H_
