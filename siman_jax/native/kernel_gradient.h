// The kernel's gradient of a binary convolution: for every tap, channel and filter, the sum over
// pixels of the activation, +-1, times the gradient of the result.
//
// Four adjacent pixels of a row are taken at a time. Their gradients have a table of signed sums
// for each block of filters, and the four bits of the activations are the index.

#ifndef SIMAN_KERNEL_GRADIENT_H_
#define SIMAN_KERNEL_GRADIENT_H_

#include <algorithm>
#include <cstdint>

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
            std::max(n.padded_width, (fours_across * kFour - 1) * n.stride + n.taps_across)),
        image(n.padded_height * image_columns * this->channels),
        rows_of_phase((n.padded_height + n.stride - 1) / n.stride),
        places(n.taps_across * n.stride * rows_of_phase * fours_across * this->channels) {}

  int64_t fours_across, fours;  // in a row, and in a sample
  int64_t channels;             // rounded up
  int64_t image_columns;        // columns of the padded image of bytes
  int64_t image;                // size of that image for one sample
  int64_t rows_of_phase;        // rows of the image with the same remainder by the stride
  int64_t places;               // size of a sample's indices

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

// The indices of all taps, [taps across, blocks of channels, phases, rows of a phase, samples,
// fours across, channels of a block]. A row of the image has the phase row % stride. In this order,
// all that one look_up reads is contiguous.
class KernelPlaces {
 public:
  KernelPlaces(const Training& run, const Convolution& n, const KernelGradientLayout& layout,
               int64_t samples)
      : run_(run), n_(n), layout_(layout), row_(samples * layout.fours_across * run.together) {}

  // Bytes between two blocks of channels.
  int64_t block() const { return n_.stride * layout_.rows_of_phase * row_; }

  // Where the indices of a tap begin.
  int64_t tap(int64_t down, int64_t right) const {
    return right * layout_.channels / run_.together * block() +
           (down % n_.stride * layout_.rows_of_phase + down / n_.stride) * row_;
  }

  // Joins the bytes of a sample's image by fours.
  void Join(int64_t sample, const uint8_t* image, uint8_t* places) const {
    const int64_t channels = layout_.channels;
    for (int64_t row = 0; row < n_.padded_height; ++row, image += layout_.image_columns * channels)
      for (int64_t right = 0; right < n_.taps_across; ++right)
        run_.join_bytes(
            layout_.fours_across, channels, image + right * channels, n_.stride * channels,
            places + tap(row, right) + sample * layout_.fours_across * run_.together, block());
  }

 private:
  const Training& run_;
  const Convolution& n_;
  const KernelGradientLayout& layout_;
  int64_t row_;
};

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
  // rounded up, and 0 outside of the gradient.
  void Add(int64_t samples, const float* g, const uint8_t* places) {
    const KernelPlaces order(run_, n_, layout_, samples);
    const int64_t taps = n_.taps_down * n_.taps_across, all = samples * layout_.fours,
                  block = taps * layout_.channels * kTableFilters;
    // Fewer tables fit the first cache better; with more tables, sums that do not fit it are loaded
    // less often.
    constexpr int64_t part = 24;
    for (int64_t first = 0; first < filters_; first += kTableFilters) {
      for (int64_t four = 0; four < all; four += part) {
        const int64_t fours = std::min(part, all - four);
        Tables(samples, g + first, four, fours);
        float* sums = sums_ + first / kTableFilters * block;
        for (int64_t row = 0; row < n_.taps_down; ++row) {
          for (int64_t column = 0; column < n_.taps_across; ++column) {
            run_.look_up(fours, tables_, places + order.tap(row, column) + four * run_.together,
                         order.block(), layout_.channels, fresh_ && four == 0, sums);
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
  // Computes the tables of fours, in the order of `KernelPlaces`.
  void Tables(int64_t samples, const float* g, int64_t four, int64_t fours) {
    const int64_t across = layout_.fours_across;
    for (int64_t done = 0; done < fours;) {
      const int64_t row = (four + done) / across, column = (four + done) % across;
      const int64_t own = std::min(across - column, fours - done);
      const int64_t at =
          row % samples * layout_.fours + row / samples * across + column;  // of the sample
      run_.filter_tables(own, g + at * kFour * filters_, filters_, tables_ + done * kFloatsOfTable);
      done += own;
    }
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
};

}  // namespace siman

#endif  // SIMAN_KERNEL_GRADIENT_H_
