// The input's gradient with vectors of pixels.
//
// Filters are taken four at a time. Their gradients along a row of pixels have a table of sixteen
// rows of signed sums, and the four bits of a tap and a channel are the index. Rows of several
// samples are joined, so that small images also fill the vectors.

#ifndef SIMAN_INPUT_BY_ROWS_H_
#define SIMAN_INPUT_BY_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "input_gradient.h"
#include "training.h"

namespace siman {

class InputByRows : public InputGradient {
 public:
  // `code` is the kernel [taps down, taps across, channels, filters]; values >= 0 count as +1.
  InputByRows(const Training& run, const Convolution& n, int64_t channels, int64_t filters,
              int64_t samples, const float* code)
      : run_(run), n_(n), channels_(channels), filters_(filters), samples_(samples), code_(code) {
    for (int64_t row = 0; row < n.stride; ++row)
      for (int64_t column = 0; column < n.stride; ++column) AddClass(row, column);
  }

  int64_t tasks() const override { return static_cast<int64_t>(tasks_.size()); }
  void Prepare(int64_t task) override {
    const auto [own, block, down] = tasks_[task];
    Place(classes_[own], block, down);
  }

  // How many samples to join for the least time per sample. The cost of a vector is one addition,
  // and about as much again to compute addresses, shared by up to kVectors vectors.
  static int64_t Samples(const Training& run, const Convolution& n, int64_t batch,
                         int64_t sample_size) {
    constexpr int64_t kMost = 8, kCached = 32768, kVectors = 8;
    // Keeps the indices into tables of four filters within 16 bits, in all classes.
    constexpr int64_t kLongest = 2048;
    int64_t best = 1;
    double least = 0;
    for (int64_t samples = 1; samples <= std::min(batch, kMost); ++samples) {
      const Class sizes(n, 0, 0, samples, run.width);
      if (samples > 1 && (samples * sample_size > kCached || sizes.row > kLongest)) break;
      const int64_t vectors = sizes.sums / run.width;
      const auto cost = static_cast<double>(vectors + (vectors + kVectors - 1) / kVectors) /
                        static_cast<double>(samples);
      if (samples == 1 || cost < least * 0.97) {
        least = cost;
        best = samples;
      }
    }
    return best;
  }

  int64_t ScratchSize() const override {
    int64_t size = 0;
    for (const Class& own : classes_)
      size = std::max(size, own.table * own.slots + own.fours * kFour * own.row +
                                own.rows * channels_ * own.sums);
    return size + kLanes;
  }

  void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across, int64_t g_step,
           const float* scale, float* scratch, float* da) const override {
    for (const Class& own : classes_)
      RunClass(own, samples, g, g_sample, across, g_step, scale, scratch, da);
  }

 private:
  struct Class : PixelClass {
    int64_t left, pitch;           // lanes before the first sample, and from sample to sample
    int64_t lanes;                 // lanes that are computed
    int64_t row, sums;             // lanes in memory, of a row that is read and of the sums
    int64_t fours = 0, table = 0;  // fours of filters at a time, and the floats in their tables
    // Indices by block of fours, row of taps, channel, four and column of taps.
    std::vector<uint16_t> places;

    Class(const Convolution& n, int64_t first_row, int64_t first_column, int64_t samples,
          int64_t width)
        : PixelClass(n, first_row, first_column),
          left(-low),
          // No sample may read another sample's numbers.
          pitch(std::max(columns + high, n.columns - low)),
          lanes((samples - 1) * pitch + columns),
          row(RoundUp(std::max(left + high + RoundUp(lanes, width),
                               left + (samples - 1) * pitch + n.columns),
                      width)),
          sums(RoundUp(lanes, width)) {}

    int64_t terms() const { return fours * static_cast<int64_t>(right.size()); }
  };

  void AddClass(int64_t row, int64_t column) {
    Class own(n_, row, column, samples_, run_.width);
    const int64_t all = (filters_ + kFour - 1) / kFour;
    if (own.slots > 0) {
      // All tables in use at the same time should fit the first cache.
      constexpr int64_t kCached = 8192;
      own.fours = std::clamp<int64_t>(kCached / (own.slots * kSums * own.row), 1, all);
      own.table = own.fours * kSums * own.row;
      const int64_t blocks = (all + own.fours - 1) / own.fours;
      own.places.resize(blocks * own.down.size() * channels_ * own.terms());
      for (int64_t block = 0; block < blocks; ++block)
        for (size_t down = 0; down < own.down.size(); ++down)
          tasks_.push_back({classes_.size(), block, static_cast<int64_t>(down)});
    }
    classes_.push_back(std::move(own));
  }

  // Computes the indices for one block of fours and one row of taps.
  void Place(Class& own, int64_t block, int64_t down) {
    const auto columns = static_cast<int64_t>(own.right.size());
    uint16_t* places = own.places.data() + (block * static_cast<int64_t>(own.down.size()) + down) *
                                               channels_ * own.terms();
    for (int64_t i = 0; i < columns; ++i) {
      const float* from =
          code_ + (own.down[down] * n_.taps_across + own.right[i]) * channels_ * filters_;
      for (int64_t channel = 0; channel < channels_; ++channel, from += filters_) {
        for (int64_t four = 0; four < own.fours; ++four) {
          const int64_t filter = (block * own.fours + four) * kFour;
          int64_t bits = 0;
          for (int64_t f = 0; f < std::min(kFour, filters_ - filter); ++f)
            bits |= int64_t{from[filter + f] >= 0} << f;
          places[channel * own.terms() + four * columns + i] = static_cast<uint16_t>(
              (four * kSums + bits) * own.row + own.left + own.column_steps[i]);
        }
      }
    }
  }

  void RunClass(const Class& own, int64_t samples, const float* g, int64_t g_sample, int64_t across,
                int64_t g_step, const float* scale, float* scratch, float* da) const {
    float* tables = scratch;
    float* rows = tables + own.table * own.slots;
    float* sums = rows + own.fours * kFour * own.row;
    const int64_t all = (filters_ + kFour - 1) / kFour;
    const int64_t terms = own.terms();
    if (own.slots == 0) {
      std::fill_n(sums, own.rows * channels_ * own.sums, 0.0f);
    } else {
      std::fill_n(rows, own.fours * kFour * own.row, 0.0f);
      const uint16_t* places = own.places.data();
      const int64_t by_tap = channels_ * terms;
      for (int64_t first = 0; first < all; first += own.fours) {
        const int64_t begin = first * kFour, count = std::min(own.fours * kFour, filters_ - begin);
        // Clear what the previous block left in rows beyond the last filter.
        if (count < own.fours * kFour)
          std::fill(rows + count * own.row, rows + own.fours * kFour * own.row, 0.0f);
        int64_t built = -1;  // rows of results up to this one have tables
        for (int64_t row = 0; row < own.rows; ++row) {
          const float* table_of[kMostTaps];
          const uint16_t* places_of[kMostTaps];
          bool fresh = first == 0;
          int64_t taps = 0;
          auto flush = [&] {
            run_.add_rows(own.lanes, channels_, taps, table_of, terms, places_of, terms, fresh,
                          sums + row * channels_ * own.sums, own.sums);
            fresh = false;
            taps = 0;
          };
          const int64_t needed = row + own.last_step();
          for (int64_t next = std::max(built + 1, needed - own.slots + 1);
               next <= std::min(needed, n_.rows - 1); ++next) {
            for (int64_t sample = 0; sample < samples; ++sample)
              run_.to_rows(n_.columns, count,
                           g + sample * g_sample + next * across * g_step + begin, g_step,
                           scale + begin, rows + own.left + sample * own.pitch, own.row);
            run_.row_tables(own.fours, own.row, rows, tables + next % own.slots * own.table);
            built = next;
          }
          for (size_t i = 0; i < own.down.size(); ++i) {
            const int64_t meets = row + own.row_steps[i];
            if (meets < 0 || meets >= n_.rows) continue;
            table_of[taps] = tables + meets % own.slots * own.table;
            places_of[taps++] = places + static_cast<int64_t>(i) * by_tap;
            if (taps == kMostTaps) flush();
          }
          if (taps > 0 || fresh) flush();
        }
        places += static_cast<int64_t>(own.down.size()) * by_tap;
      }
    }
    for (int64_t row = 0; row < own.rows; ++row) {
      for (int64_t sample = 0; sample < samples; ++sample) {
        const int64_t y = row * n_.stride + own.first_row;
        run_.to_rows(channels_, own.columns, sums + row * channels_ * own.sums + sample * own.pitch,
                     own.sums, nullptr,
                     da + ((sample * n_.height + y) * n_.width + own.first_column) * channels_,
                     n_.stride * channels_);
      }
    }
  }

  const Training& run_;
  const Convolution& n_;
  int64_t channels_, filters_, samples_;
  const float* code_;
  std::vector<Class> classes_;
  struct Task {
    size_t own;
    int64_t block, down;
  };
  std::vector<Task> tasks_;
};

}  // namespace siman

#endif  // SIMAN_INPUT_BY_ROWS_H_
