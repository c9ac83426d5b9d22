// A single convolution of bits, from bools to int32 results.

#ifndef SIMAN_BINARY_CONV_H_
#define SIMAN_BINARY_CONV_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "convolution.h"
#include "threads.h"
#include "variant.h"

namespace siman {

// Packs bytes 0 or 1 into words; bits beyond `length` are 0.
inline void PackBytes(const uint8_t* bytes, int64_t length, uint32_t* words) {
  auto pack_eight = [](const uint8_t* from) {
    uint64_t eight;
    std::memcpy(&eight, from, 8);
    // The product moves the lowest bit of byte i to bit 56 + i, without carries between them.
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

// Packs one row of the padded images; `index` counts the rows of all samples.
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

// Computes y [batch, rows, columns, out] from `bits` [batch, height, width, channels], bytes 0 or
// 1; out is a multiple of kLanes. `padded` is scratch for a padded image per sample.
inline void RunBinaryConv(const Pool& pool, const Variant& variant, const Convolution& n,
                          int64_t batch, int64_t channels, const uint8_t* bits,
                          const uint32_t* kernel, const int32_t* corner_sums, uint32_t* padded,
                          int32_t* y) {
  const int64_t results = batch * n.results();
  if (results == 0 || n.out == 0) return;

  auto pack = [&](int64_t index, int64_t) { PackRow(n, channels, index, bits, padded); };
  // Several parts for every thread, so that all finish at about the same time.
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
        sums[p] = y + (first + std::min(p, group.count - 1)) * n.out + filter;
      MultiplyGroup(variant, n, n.taps(n.out), group, channels, filters, padded, kernel + filter,
                    corner_sums + filter, sums);
    });
  };
  RunPhases(pool, workers, {{batch * n.padded_height, pack}, {blocks * parts, multiply}});
}

}  // namespace siman

#endif  // SIMAN_BINARY_CONV_H_
