// A convolution of floats with few input channels for training, such as a network's first layer:
// its forward direction and the kernel's gradient.

#ifndef SIMAN_REAL_CONV_H_
#define SIMAN_REAL_CONV_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "memory.h"
#include "threads.h"
#include "training.h"
#include "variant.h"

namespace siman {

struct RealConv {
  const Variant* variant;
  int64_t batch;
  Convolution n;  // depth: channels
  const float* x;

  int64_t sample() const { return n.height * n.width * n.depth; }
  int64_t results() const { return n.results() * n.out; }
  const float* Image(int64_t index) const { return x + index * sample(); }
};

inline RealConv MakeRealConv(const Variant* variant, const int64_t* image, const int64_t* kernel,
                             const int64_t* result, int64_t stride, int64_t top, int64_t left,
                             const float* x) {
  const int64_t rows = result[0], columns = result[1];
  const Convolution n{image[1],
                      image[2],
                      std::max(image[1] + top, (rows - 1) * stride + kernel[0]),
                      std::max(image[2] + left, (columns - 1) * stride + kernel[1]),
                      image[3],
                      kernel[0],
                      kernel[1],
                      rows,
                      columns,
                      kernel[3],
                      top,
                      left,
                      stride};
  return {variant, image[0], n, x};
}

// Copies a sample into its padded image, whose padding must already be 0.
inline void PadImage(const Convolution& n, const float* x, float* padded) {
  for (int64_t row = 0; row < n.height; ++row)
    std::copy_n(x + row * n.width * n.depth, n.width * n.depth,
                padded + (row + n.top) * n.image_row() + n.left * n.depth);
}

// Computes y [batch, rows, columns, out] with a kernel [taps down, taps across, channels, out].
inline void RunRealForward(const Pool& pool, const RealConv& conv, const float* kernel, float* y) {
  const Convolution& n = conv.n;
  const int64_t workers = Workers(pool);
  std::vector<std::vector<float>> padded(workers);
  auto sample = [&](int64_t index, int64_t worker) {
    padded[worker].resize(n.padded_size());
    PadImage(n, conv.Image(index), padded[worker].data());
    for (int64_t filter = 0; filter < n.out; filter += kFilters) {
      const int64_t filters = std::min(kFilters, n.out - filter);
      ForGroups(n, 0, n.results(), [&](int64_t first, const Group& group) {
        const float* seen[kPixels];
        float* to[kPixels];
        FirstTaps(n, group, padded[worker].data(), seen);
        for (int64_t p = 0; p < kPixels; ++p)
          to[p] =
              y + index * conv.results() + (first + std::min(p, group.count - 1)) * n.out + filter;
        conv.variant->multiply_floats(n.taps(n.out), seen, kernel + filter, filters, to);
      });
    }
  };
  RunPhases(pool, workers, {{conv.batch, sample}});
}

// Computes the kernel's gradient from g [batch, rows, columns, out].
inline void RunRealKernelGradient(const Pool& pool, const RealConv& conv, const float* g,
                                  float* kernel) {
  constexpr int64_t kBlocks = 32;
  const Convolution& n = conv.n;
  const int64_t workers = Workers(pool), size = n.kernel_values() * n.out;
  const int64_t part = (conv.batch + kBlocks - 1) / kBlocks,
                blocks = (conv.batch + part - 1) / part;
  std::vector<std::vector<float>> padded(workers);
  const Memory sums(blocks * size);
  auto block = [&](int64_t index, int64_t worker) {
    padded[worker].resize(n.padded_size());
    float* own = sums.data() + index * size;
    std::fill_n(own, size, 0.0f);
    for (int64_t sample = index * part; sample < std::min(conv.batch, (index + 1) * part);
         ++sample) {
      PadImage(n, conv.Image(sample), padded[worker].data());
      for (int64_t row = 0; row < n.rows; ++row)
        for (int64_t down = 0; down < n.taps_down; ++down)
          conv.variant->training->add_products(
              n.columns, n.taps_across * n.depth, n.stride * n.depth,
              padded[worker].data() + (row * n.stride + down) * n.image_row(), n.out,
              g + sample * conv.results() + row * n.columns * n.out,
              own + down * n.taps_across * n.depth * n.out);
    }
  };
  auto combine = [&](int64_t value, int64_t) {
    for (int64_t i = value * n.out; i < (value + 1) * n.out; ++i) {
      double total = 0;
      for (int64_t index = 0; index < blocks; ++index) total += sums.data()[index * size + i];
      kernel[i] = static_cast<float>(total);
    }
  };
  RunPhases(pool, workers, {{blocks, block}, {n.kernel_values(), combine}});
}

}  // namespace siman

#endif  // SIMAN_REAL_CONV_H_
