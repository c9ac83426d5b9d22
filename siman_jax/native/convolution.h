// Sizes of a convolution, its padding, and the loop over its results, for bits and floats.

#ifndef SIMAN_CONVOLUTION_H_
#define SIMAN_CONVOLUTION_H_

#include <algorithm>
#include <cstdint>

#include "variant.h"

namespace siman {

constexpr int64_t kWordBits = 32;

inline int64_t RoundUp(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// Sizes of one convolution. The padded image has `depth` values per pixel.
struct Convolution {
  int64_t height, width;  // of the image
  int64_t padded_height, padded_width, depth;
  int64_t taps_down, taps_across;
  int64_t rows, columns, out;  // of the result
  int64_t top, left, stride;
  int64_t other_stride = 0;  // across, where it is not `stride`

  int64_t stride_across() const { return other_stride == 0 ? stride : other_stride; }
  int64_t image_row() const { return padded_width * depth; }
  int64_t padded_size() const { return padded_height * image_row(); }
  int64_t results() const { return rows * columns; }
  int64_t kernel_values() const { return taps_down * taps_across * depth; }  // of one filter

  // For a kernel in which the values of one filter are `filters` apart.
  Taps taps(int64_t filters) const {
    return {taps_down, taps_across * depth, image_row(), filters};
  }
};

// Up to kPixels successive results, in the order of samples, rows and columns.
struct Group {
  int64_t count;
  int64_t samples[kPixels], rows[kPixels], columns[kPixels];
};

// Calls body(first, group) for the results from `begin` to `end`. An incomplete group repeats its
// last result.
template <typename Body>
void ForGroups(const Convolution& n, int64_t begin, int64_t end, const Body& body) {
  if (begin >= end) return;
  int64_t sample = begin / n.results(), row = begin / n.columns % n.rows,
          column = begin % n.columns;
  for (int64_t first = begin; first < end; first += kPixels) {
    Group group;
    group.count = std::min(kPixels, end - first);
    for (int64_t p = 0; p < kPixels; ++p) {
      const bool repeats = p >= group.count;
      group.samples[p] = repeats ? group.samples[p - 1] : sample;
      group.rows[p] = repeats ? group.rows[p - 1] : row;
      group.columns[p] = repeats ? group.columns[p - 1] : column;
      if (repeats || ++column < n.columns) continue;
      column = 0;
      if (++row < n.rows) continue;
      row = 0;
      ++sample;
    }
    body(first, group);
  }
}

// Finds where in the padded images the first tap of each result of a group is.
template <typename Value>
void FirstTaps(const Convolution& n, const Group& group, const Value* padded,
               const Value* (&seen)[kPixels]) {
  for (int64_t p = 0; p < kPixels; ++p)
    seen[p] = padded + group.samples[p] * n.padded_size() +
              group.rows[p] * n.stride * n.image_row() +
              group.columns[p] * n.stride_across() * n.depth;
}

// Corrects the result at (row, column) for padding. Padding has all bits 0, which counted as -1, so
// this adds back the kernel's sum over the padded taps. `corner_sums` and `y` start at the first of
// `filters`.
inline void AddPadding(const Variant& variant, const Convolution& n, int64_t row, int64_t column,
                       const int32_t* corner_sums, int64_t filters, int32_t* y) {
  row *= n.stride;
  column *= n.stride_across();
  if (row >= n.top && row + n.taps_down <= n.top + n.height && column >= n.left &&
      column + n.taps_across <= n.left + n.width)
    return;
  // The taps over the image are those from row r0 and column c0 up to r1 and c1.
  const int64_t r0 = std::clamp<int64_t>(n.top - row, 0, n.taps_down);
  const int64_t r1 = std::clamp<int64_t>(n.top + n.height - row, 0, n.taps_down);
  const int64_t c0 = std::clamp<int64_t>(n.left - column, 0, n.taps_across);
  const int64_t c1 = std::clamp<int64_t>(n.left + n.width - column, 0, n.taps_across);
  auto sums = [&](int64_t rows, int64_t columns) {
    return corner_sums + (rows * (n.taps_across + 1) + columns) * n.out;
  };
  variant.add_border(filters, sums(n.taps_down, n.taps_across), sums(r1, c1), sums(r0, c1),
                     sums(r1, c0), sums(r0, c0), y);
}

// Computes sums of +-1 for a group and a block of filters; `kernel` and `corner_sums` start at the
// block.
inline void MultiplyGroup(const Variant& variant, const Convolution& n, const Taps& taps,
                          const Group& group, int64_t channels, int64_t filters,
                          const uint32_t* padded, const uint32_t* kernel,
                          const int32_t* corner_sums, int32_t* const* y) {
  const uint32_t* seen[kPixels];
  FirstTaps(n, group, padded, seen);
  const auto terms = static_cast<int32_t>(n.taps_down * n.taps_across * channels);
  variant.multiply_bits(taps, seen, kernel, filters, terms, y);
  for (int64_t p = 0; p < group.count; ++p)
    AddPadding(variant, n, group.rows[p], group.columns[p], corner_sums, filters, y[p]);
}

}  // namespace siman

#endif  // SIMAN_CONVOLUTION_H_
