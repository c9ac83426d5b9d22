// The kernel's gradient of a binary convolution: for every tap, channel and filter, the sum over
// pixels of the activation, +-1, times the gradient of the result.
//
// Four adjacent pixels of a row are taken at a time. Their gradients have a table of signed sums
// for each block of filters, and the four bits of the activations are the index.

#ifndef SIMAN_KERNEL_GRADIENT_H_
#define SIMAN_KERNEL_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "training.h"

namespace siman {

// Sizes in memory, for samples that are handled together.
struct KernelGradientLayout {
  KernelGradientLayout(const Convolution& n, int64_t channels)
      : fours_across((n.columns + kFour - 1) / kFour),
        fours(n.rows * fours_across),
        channels(RoundUp(channels, kLanes)),
        image_columns(
            std::max(n.padded_width, (fours_across * kFour - 1) * n.stride + n.taps_across) +
            (kFour - 1) * n.stride),
        image(n.padded_height * image_columns * this->channels) {}

  int64_t fours_across, fours;  // in a row, and in a sample
  int64_t channels;             // rounded up
  int64_t image_columns;        // columns of the padded image of bytes
  int64_t image;                // size of that image for one sample

  int64_t pixels() const { return fours * kFour; }  // pixels of a sample's gradient, rounded up
};

// Writes the padded image of a sample in bytes: kBit where x >= least. Padding must already be 0.
inline void ImageBytes(const Training& run, const Convolution& n,
                       const KernelGradientLayout& layout, int64_t channels, const float* x,
                       float least, uint8_t* bytes) {
  for (int64_t row = 0; row < n.height; ++row, x += n.width * channels) {
    uint8_t* to = bytes + ((row + n.top) * layout.image_columns + n.left) * layout.channels;
    if (channels == layout.channels) {
      run.to_bytes(n.width * channels, x, least, to);
      continue;
    }
    for (int64_t column = 0; column < n.width; ++column)
      run.to_bytes(channels, x + column * channels, least, to + column * layout.channels);
  }
}

// The gradient for some filters, summed over groups of samples.
class KernelGradient {
 public:
  // Sizes of `sums` and `border` for that many filters.
  static int64_t SumsSize(const Convolution& n, const KernelGradientLayout& layout,
                          int64_t filters) {
    return n.taps_down * n.taps_across * layout.channels * RoundUp(filters, kTableFilters);
  }
  static int64_t BorderSize(const Convolution& n, int64_t filters) {
    return n.taps_down * n.taps_across * RoundUp(filters, kTableFilters);
  }

  // `sums` [blocks of filters, taps, channels, kTableFilters] need not be initialized, `border`
  // [taps, filters] must be 0; `tables` has room for kMostFours tables.
  KernelGradient(const Training& run, const Convolution& n, const KernelGradientLayout& layout,
                 int64_t filters, float* sums, float* border, float* tables)
      : run_(run),
        n_(n),
        layout_(layout),
        filters_(RoundUp(filters, kTableFilters)),
        sums_(sums),
        border_(border),
        tables_(tables) {}

  static constexpr int64_t kMostFours = 32;

  // Adds the contribution of samples. `g` is [samples, layout.pixels(), filters], with filters
  // rounded up, and 0 outside of the gradient; `places` are the samples' images, joined by fours.
  void Add(int64_t samples, const float* g, const uint8_t* places) {
    Starts(samples);
    const int64_t taps = n_.taps_down * n_.taps_across,
                  block = taps * layout_.channels * kTableFilters;
    // Fewer tables fit the first cache better; with more tables, sums that do not fit it are loaded
    // less often.
    constexpr int64_t part = 24;
    for (int64_t first = 0; first < filters_; first += kTableFilters) {
      for (int64_t four = 0; four < samples * layout_.fours; four += part) {
        const int64_t fours = std::min(part, samples * layout_.fours - four);
        run_.filter_tables(fours, g + four * kFour * filters_ + first, filters_, tables_);
        float* sums = sums_ + first / kTableFilters * block;
        for (int64_t row = 0; row < n_.taps_down; ++row) {
          for (int64_t column = 0; column < n_.taps_across; ++column) {
            run_.look_up(fours, tables_, starts_.data() + four,
                         places + (row * layout_.image_columns + column) * layout_.channels,
                         layout_.channels, fresh_ && four == 0, sums);
            sums += layout_.channels * kTableFilters;
          }
        }
      }
    }
    fresh_ = false;
    for (int64_t sample = 0; sample < samples; ++sample)
      AddBorder(g + sample * layout_.pixels() * filters_);
  }

 private:
  // Computes where in the images the first tap of each four is.
  void Starts(int64_t samples) {
    if (static_cast<int64_t>(starts_.size()) >= samples * layout_.fours) return;
    starts_.clear();
    for (int64_t sample = 0; sample < samples; ++sample)
      for (int64_t row = 0; row < n_.rows; ++row)
        for (int64_t four = 0; four < layout_.fours_across; ++four)
          starts_.push_back(static_cast<int32_t>(sample * layout_.image +
                                                 (row * layout_.image_columns + four * kFour) *
                                                     n_.stride * layout_.channels));
  }

  // Bits of padding are 0, which counted as -1; this corrects for it.
  void AddBorder(const float* g) {
    const int64_t row_size = layout_.fours_across * kFour * filters_;
    float* to = border_;
    for (int64_t down = 0; down < n_.taps_down; ++down) {
      const Range rows = Inside(n_.top - down, n_.height, n_.rows);
      for (int64_t right = 0; right < n_.taps_across; ++right, to += filters_) {
        const Range columns = Inside(n_.left - right, n_.width, n_.columns);
        // Whole rows above and below the image; columns left and right of it in the other rows.
        for (int64_t row = 0; row < n_.rows; ++row)
          if (row < rows.begin || row >= rows.end)
            run_.add_up(n_.columns, filters_, filters_, {g + row * row_size, nullptr}, to);
        for (int64_t column = 0; column < n_.columns; ++column)
          if (column < columns.begin || column >= columns.end)
            run_.add_up(rows.end - rows.begin, filters_, row_size,
                        {g + rows.begin * row_size + column * filters_, nullptr}, to);
      }
    }
  }

  // The results, out of `count`, whose tap lies inside of an image of `size` that begins `before`
  // places after the first place of the tap.
  struct Range {
    int64_t begin, end;
  };
  Range Inside(int64_t before, int64_t size, int64_t count) const {
    const int64_t begin = std::clamp<int64_t>(CeilDivide(before, n_.stride), 0, count);
    return {begin, std::clamp<int64_t>(CeilDivide(before + size, n_.stride), begin, count)};
  }

  static int64_t CeilDivide(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

  const Training& run_;
  const Convolution& n_;
  const KernelGradientLayout& layout_;
  int64_t filters_;
  float *sums_, *border_, *tables_;
  bool fresh_ = true;  // nothing has been added yet
  std::vector<int32_t> starts_;
};

}  // namespace siman

#endif  // SIMAN_KERNEL_GRADIENT_H_
