// The first layers of a network for large images: a 7x7 convolution with stride 2, a scale and a
// shift per channel, a lower limit, and 3x3 maxima with stride 2.
//
// Two adjacent outputs of a row are computed at once by Winograd's
// minimal filtering, with 10 multiplications instead of 14. Even taps and odd taps are each a
// convolution without stride. Three even (or odd) taps g and four inputs d give two outputs by
//
//   (d0 - d2) g0 + s + t  and  s - t + (d3 - d1) g2,  where
//   s = (d1 + d2) (g0 + g1 + g2) / 2  and  t = (d2 - d1) (g0 - g1 + g2) / 2;
//
// The seventh tap is multiplied directly. Even taps, odd taps and the seventh are added up in the
// same four sums: that of the left output alone, s, t, and that of the right output alone. The
// caller transforms the kernel (`PooledStem::PairKernel`), and `PairInputs` the image.

#ifndef SIMAN_STEM_H_
#define SIMAN_STEM_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "variant.h"

namespace siman {

struct Stem {
  Convolution conv;     // depth: channels of the image
  const float* kernel;  // the kernels of the four sums, one after another
  const float *gain, *offset;
  float least;

  static constexpr int kSums = 4;
  static constexpr int64_t kTaps[kSums] = {3, 2, 2, 3};  // taps in a row, for each sum
  static constexpr int64_t kAllTaps = 10;

  static int64_t Pooled(int64_t size) { return (size + 1) / 2; }
  int64_t rows() const { return Pooled(conv.rows); }
  int64_t columns() const { return Pooled(conv.columns); }
  int64_t pairs() const { return (conv.columns + 1) / 2; }

  // Sizes in memory: of the image as the convolution reads it, and of a row of its results.
  int64_t seen_row() const { return pairs() * kAllTaps * conv.depth; }
  int64_t padded_row() const { return std::max(conv.padded_width, 4 * pairs() + 5) * conv.depth; }
  int64_t image_size() const { return padded_row() + conv.padded_height * seen_row(); }
  int64_t row_size() const { return 2 * pairs() * conv.out; }
};

// Memory for a worker: `image_size`, `row_size`, and three rows of `columns`.
struct StemMemory {
  float *image, *row, *pooled_rows;
};

// Transforms a row of the padded image to the inputs of the four sums, pair after pair for each
// sum.
inline void PairInputs(const Stem& stem, const float* padded, float* seen) {
  const int64_t depth = stem.conv.depth, two = 2 * depth, pairs = stem.pairs();
  float* left = seen;
  float* sum = left + pairs * 3 * depth;
  float* difference = sum + pairs * 2 * depth;
  float* right = difference + pairs * 2 * depth;
  for (int64_t pair = 0; pair < pairs; ++pair, padded += 2 * two) {
    const float *d0 = padded, *d1 = d0 + two, *d2 = d1 + two, *d3 = d2 + two, *d4 = d3 + two;
    for (int64_t i = 0; i < two; ++i) {  // an even tap and the odd one after it
      left[i] = d0[i] - d2[i];
      sum[i] = d1[i] + d2[i];
      difference[i] = d2[i] - d1[i];
      right[i] = d3[i] - d1[i];
    }
    for (int64_t i = 0; i < depth; ++i) {
      left[two + i] = d3[i];
      right[two + i] = d4[i];
    }
    left += 3 * depth;
    sum += two;
    difference += two;
    right += 3 * depth;
  }
}

// Writes rows `begin` to `end` of the padded image, as the convolution reads it.
inline void SeenRows(const Stem& stem, const float* image, int64_t begin, int64_t end,
                     const StemMemory& memory) {
  const Convolution& n = stem.conv;
  const int64_t left = n.left * n.depth, length = n.width * n.depth;
  float* seen = memory.image + stem.padded_row() + begin * stem.seen_row();
  for (int64_t index = begin; index < end; ++index, seen += stem.seen_row()) {
    const int64_t row = index - n.top;
    float* padded = memory.image;
    if (row < 0 || row >= n.height) {
      std::fill_n(seen, stem.seen_row(), 0.0f);
      continue;
    }
    std::fill_n(padded, left, 0.0f);
    std::copy_n(image + row * length, length, padded + left);
    std::fill(padded + left + length, padded + stem.padded_row(), 0.0f);
    PairInputs(stem, padded, seen);
  }
}

// Computes a row of the convolution by pairs of outputs.
inline void MultiplyPairs(const Variant& run, const Stem& stem, int64_t row, const float* seen,
                          float* y) {
  const Convolution& n = stem.conv;
  seen += row * n.stride * stem.seen_row();
  for (int64_t filter = 0; filter < n.out; filter += kFilters) {
    const int64_t filters = std::min(kFilters, n.out - filter);
    for (int64_t begin = 0; begin < stem.pairs(); begin += kPixels) {
      float sums[Stem::kSums][kPixels][kFilters];
      const float *plane = seen, *kernel = stem.kernel;
      for (int sum = 0; sum < Stem::kSums; ++sum) {
        const int64_t values = Stem::kTaps[sum] * n.depth;
        const float* first[kPixels];
        float* to[kPixels];
        for (int64_t p = 0; p < kPixels; ++p) {
          first[p] = plane + std::min(begin + p, stem.pairs() - 1) * values;
          to[p] = sums[sum][p];
        }
        run.multiply_floats({n.taps_down, values, stem.seen_row(), filters}, first,
                            kernel + filter * n.taps_down * values, filters, to);
        plane += stem.pairs() * values;
        kernel += n.out * n.taps_down * values;
      }
      const int64_t pairs = std::min(kPixels, stem.pairs() - begin);
      for (int64_t p = 0; p < pairs; ++p) {
        float* to = y + 2 * (begin + p) * n.out + filter;
        run.join_pair(filters, sums[0][p], sums[1][p], sums[2][p], sums[3][p], to, to + n.out);
      }
    }
  }
}

inline void StemRow(const Variant& run, const Stem& stem, int64_t row, const StemMemory& memory,
                    float* y) {
  const Convolution& n = stem.conv;
  const float* seen = memory.image + stem.padded_row();
  MultiplyPairs(run, stem, row, seen, y);
  run.normalize(n.columns, n.out, stem.gain, stem.offset, stem.least, y);
}

inline void PoolAcross(const Variant& run, const Stem& stem, const float* row, float* y) {
  const Convolution& n = stem.conv;
  for (int64_t x = 0; x < stem.columns(); ++x)
    run.max3(n.out, row + std::max<int64_t>(0, 2 * x - 1) * n.out, row + 2 * x * n.out,
             row + std::min(n.columns - 1, 2 * x + 1) * n.out, y + x * n.out);
}

// Computes rows `begin` to `end` of the stem's output for an image.
inline void StemRows(const Variant& run, const Stem& stem, const float* image, int64_t begin,
                     int64_t end, const StemMemory& memory, float* y) {
  const Convolution& n = stem.conv;
  const int64_t length = stem.columns() * n.out;
  int64_t next = std::max<int64_t>(0, 2 * begin - 1);
  const int64_t last = std::min(n.rows, 2 * end) - 1;
  SeenRows(stem, image, next * n.stride, last * n.stride + n.taps_down, memory);
  auto across = [&](int64_t row) { return memory.pooled_rows + row % 3 * length; };
  for (int64_t row = begin; row < end; ++row, y += length) {
    const int64_t above = std::max<int64_t>(0, 2 * row - 1);
    const int64_t below = std::min(n.rows - 1, 2 * row + 1);
    for (; next <= below; ++next) {
      StemRow(run, stem, next, memory, memory.row);
      PoolAcross(run, stem, memory.row, across(next));
    }
    run.max3(length, across(above), across(2 * row), across(below), y);
  }
}

}  // namespace siman

#endif  // SIMAN_STEM_H_
