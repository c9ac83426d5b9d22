// The input's gradient with vectors of channels, for instruction sets that look up sixteen entries
// of a register at once.
//
// Filters are taken four at a time. The gradients of four filters at a pixel have a table of
// sixteen signed sums, which is one register; the four bits of a tap and a channel are the index.

#ifndef SIMAN_INPUT_BY_PIXELS_H_
#define SIMAN_INPUT_BY_PIXELS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "input_gradient.h"
#include "training.h"
#include "variant.h"

namespace siman {

class InputByPixels : public InputGradient {
 public:
  static bool Covers(const Training& run, int64_t channels) {
    return run.add_pixels != nullptr && channels % kSums == 0;
  }

  // `code` is the kernel [taps down, taps across, channels, filters]; values >= 0 count as +1.
  InputByPixels(const Variant& variant, const Convolution& n, int64_t channels, int64_t filters,
                const float* code)
      : variant_(variant),
        run_(*variant.training),
        n_(n),
        channels_(channels),
        filters_(filters),
        padded_filters_(RoundUp(filters, kLanes)),
        fours_(std::min(kFoursOfPlaces, padded_filters_ / kFour)),
        blocks_((padded_filters_ / kFour + fours_ - 1) / fours_),
        code_(code),
        places_(n.taps_down * n.taps_across * blocks_ * channels) {
    for (int64_t row = 0; row < n.stride; ++row)
      for (int64_t column = 0; column < n.stride; ++column) classes_.emplace_back(n, row, column);
  }

  // A task computes the places of one tap.
  int64_t tasks() const override { return n_.taps_down * n_.taps_across; }

  void Prepare(int64_t tap) override {
    std::vector<float> code(padded_filters_);
    std::vector<uint32_t> words(blocks_);
    for (int64_t channel = 0; channel < channels_; ++channel) {
      std::copy_n(code_ + (tap * channels_ + channel) * filters_, filters_, code.data());
      variant_.pack(padded_filters_, code.data(), 0.0f, words.data());
      for (int64_t block = 0; block < blocks_; ++block)
        places_[(tap * blocks_ + block) * channels_ + channel] = words[block];
    }
  }

  int64_t ScratchSize() const override {
    int64_t size = 0;
    for (const PixelClass& own : classes_) size = std::max(size, own.slots * RowSize(own));
    return padded_filters_ + size;
  }

  void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across, int64_t g_step,
           const float* scale, float* scratch, float* da) const override {
    std::copy_n(scale, filters_, scratch);
    std::fill_n(scratch + filters_, padded_filters_ - filters_, 0.0f);
    float* tables = scratch + padded_filters_;
    for (const PixelClass& own : classes_) {
      // Results outside of the image have tables of zeros, which do not change.
      for (int64_t slot = 0; slot < own.slots; ++slot) {
        float* row = tables + slot * RowSize(own);
        std::fill_n(row, -own.low * TableSize(), 0.0f);
        std::fill(row + (n_.columns - own.low) * TableSize(), row + RowSize(own), 0.0f);
      }
      for (int64_t sample = 0; sample < samples; ++sample)
        for (int64_t block = 0; block < blocks_; ++block)
          RunBlock(own, block, g + sample * g_sample, across, g_step, scratch, tables,
                   da + sample * n_.height * n_.width * channels_);
    }
  }

 private:
  // Floats in the tables of a pixel, and in a row of results including those outside of the image.
  int64_t TableSize() const { return fours_ * kSums; }
  int64_t RowSize(const PixelClass& own) const {
    return (-own.low + std::max(own.columns + own.high, n_.columns)) * TableSize();
  }

  // Adds the contribution of one block of filters to da, [height, width, channels].
  void RunBlock(const PixelClass& own, int64_t block, const float* g, int64_t across,
                int64_t g_step, const float* scale, float* tables, float* da) const {
    const int64_t first = block * fours_ * kFour;
    const int64_t fours = std::min(fours_, padded_filters_ / kFour - block * fours_);
    int64_t built = -1;  // rows of results up to this one have tables
    for (int64_t row = 0; row < own.rows; ++row) {
      const float* table_of[kMostTaps];
      const uint32_t* places_of[kMostTaps];
      bool fresh = block == 0;
      int64_t taps = 0;
      float* to =
          da + ((row * n_.stride + own.first_row) * n_.width + own.first_column) * channels_;
      auto flush = [&] {
        run_.add_pixels(own.columns, channels_, taps, table_of, TableSize(), fours, places_of,
                        fresh, to, n_.stride * channels_);
        fresh = false;
        taps = 0;
      };
      if (own.slots > 0) {
        const int64_t needed = row + own.last_step();
        for (int64_t next = std::max(built + 1, needed - own.slots + 1);
             next <= std::min(needed, n_.rows - 1); ++next) {
          run_.pixel_tables(
              n_.columns, fours, g + next * across * g_step + first, g_step, scale + first,
              tables + next % own.slots * RowSize(own) - own.low * TableSize(), TableSize());
          built = next;
        }
        for (size_t i = 0; i < own.down.size(); ++i) {
          const int64_t meets = row + own.row_steps[i];
          if (meets < 0 || meets >= n_.rows) continue;
          for (size_t j = 0; j < own.right.size(); ++j) {
            const int64_t tap = own.down[i] * n_.taps_across + own.right[j];
            table_of[taps] = tables + meets % own.slots * RowSize(own) +
                             (own.column_steps[j] - own.low) * TableSize();
            places_of[taps++] = places_.data() + (tap * blocks_ + block) * channels_;
            if (taps == kMostTaps) flush();
          }
        }
      }
      if (taps > 0 || fresh) flush();
    }
  }

  const Variant& variant_;
  const Training& run_;
  const Convolution& n_;
  int64_t channels_, filters_, padded_filters_;
  int64_t fours_, blocks_;  // fours of filters in a block, and blocks
  const float* code_;
  std::vector<PixelClass> classes_;
  std::vector<uint32_t> places_;  // [taps, blocks, channels], four bits for each four filters
};

}  // namespace siman

#endif  // SIMAN_INPUT_BY_PIXELS_H_
