// The input's gradient with vectors of pixels.
//
// Filters are taken four at a time. Their gradients along a row of results have a table of sixteen
// rows of signed sums, and the four bits of a tap and a channel are the index. The sums of each
// column of taps stay apart until the end, and are shifted then, so that all vectors of the tables
// are aligned. Rows of several samples are joined, so that small images also fill the vectors.

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
  // and half as much to read an index, shared by up to kVectors vectors.
  static int64_t Samples(const Training& run, const Convolution& n, int64_t batch,
                         int64_t sample_size) {
    constexpr int64_t kMost = 8, kCached = 32768, kVectors = 4;
    // Keeps the indices into tables of four filters within 16 bits.
    constexpr int64_t kLongest = 2048;
    int64_t best = 1;
    double least = 0;
    for (int64_t samples = 1; samples <= std::min(batch, kMost); ++samples) {
      if (samples > 1 && (samples * sample_size > kCached || samples * n.columns > kLongest)) break;
      const int64_t vectors = (samples * n.columns + run.width - 1) / run.width;
      const auto cost = (static_cast<double>(vectors) +
                         0.5 * static_cast<double>((vectors + kVectors - 1) / kVectors)) /
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
      size = std::max(size, own.table * own.slots + own.fours * kFour * own.lanes + own.before() +
                                own.kept * SumsSize(own) + own.after());
    return size + kLanes;
  }

  void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across, int64_t g_step,
           const float* scale, float* scratch, float* da) const override {
    for (const Class& own : classes_)
      RunClass(own, samples, g, g_sample, across, g_step, scale, scratch, da);
  }

 private:
  struct Class : PixelClass {
    int64_t lanes;                 // of a row of results
    int64_t fours = 0, table = 0;  // fours of filters at a time, and the floats in their tables
    int64_t kept = 1;              // rows of pixels whose sums are kept
    // Indices by block of fours, channel, column of taps, four and row of taps.
    std::vector<uint16_t> places;
    // For each column of taps: all ones where a pixel has a result, else 0.
    std::vector<int32_t> masks;
    int64_t mask;  // numbers in one of them

    Class(const Convolution& n, int64_t first_row, int64_t first_column, int64_t samples,
          int64_t width)
        : PixelClass(n, first_row, first_column),
          lanes(RoundUp(samples * n.columns, width)),
          mask(RoundUp(columns, kLanes)) {
      masks.resize(right.size() * mask);
      for (size_t i = 0; i < right.size(); ++i)
        for (int64_t x = 0; x < columns; ++x)
          if (const int64_t result = x + column_steps[i]; result >= 0 && result < n.columns)
            masks[i * mask + x] = -1;
    }

    // Numbers beyond the sums that shifted vectors reach.
    int64_t before() const { return RoundUp(-low, kLanes); }
    int64_t after() const { return RoundUp(high + columns, kLanes) + kLanes; }
    // Columns of taps; none if there are no rows of taps.
    int64_t across() const { return slots == 0 ? 0 : static_cast<int64_t>(right.size()); }
    int64_t height() const { return static_cast<int64_t>(down.size()); }
    int64_t places_of_channel() const { return across() * fours * height(); }
  };

  // Sums of a row of pixels: [channels, columns of taps, lanes].
  int64_t SumsSize(const Class& own) const { return channels_ * own.across() * own.lanes; }

  void AddClass(int64_t row, int64_t column) {
    Class own(n_, row, column, samples_, run_.width);
    const int64_t all = (filters_ + kFour - 1) / kFour;
    if (own.slots > 0) {
      // With more tables, sums are loaded less often. Vectors are added from the second cache
      // nearly as fast as from the first.
      constexpr int64_t kCached = 24576;
      const int64_t most = std::clamp<int64_t>(kCached / (own.slots * kSums * own.lanes), 1, all);
      const int64_t blocks = (all + most - 1) / most;
      own.fours = (all + blocks - 1) / blocks;
      own.table = own.fours * kSums * own.lanes;
      if (blocks > 1) own.kept = own.rows;
      own.places.resize(blocks * channels_ * own.places_of_channel());
      for (int64_t block = 0; block < blocks; ++block)
        for (size_t down = 0; down < own.down.size(); ++down)
          tasks_.push_back({classes_.size(), block, static_cast<int64_t>(down)});
    }
    classes_.push_back(std::move(own));
  }

  // Computes the indices for one block of fours and one row of taps.
  void Place(Class& own, int64_t block, int64_t down) {
    uint16_t* places = own.places.data() + block * channels_ * own.places_of_channel() + down;
    const int64_t filter = block * own.fours * kFour;
    const int64_t filters = std::min(own.fours * kFour, filters_ - filter);
    std::vector<uint8_t> bits(own.fours * kFour);
    for (int64_t channel = 0; channel < channels_; ++channel) {
      for (int64_t i = 0; i < own.across(); ++i) {
        const int64_t tap = own.down[down] * n_.taps_across + own.right[i];
        run_.to_bytes(filters, code_ + (tap * channels_ + channel) * filters_ + filter, 0.0f,
                      bits.data());
        for (int64_t four = 0; four < own.fours; ++four) {
          int64_t sum = four * kSums;
          for (int64_t f = 0; f < kFour; ++f) sum += bits[four * kFour + f] / kBit << f;
          *places = static_cast<uint16_t>(sum * own.lanes);
          places += own.height();
        }
      }
    }
  }

  void RunClass(const Class& own, int64_t samples, const float* g, int64_t g_sample, int64_t across,
                int64_t g_step, const float* scale, float* scratch, float* da) const {
    float* tables = scratch;
    float* rows = tables + own.table * own.slots;
    float* sums = rows + own.fours * kFour * own.lanes + own.before();
    std::vector<const float*> from(own.across());
    std::vector<const int32_t*> masks(own.across());
    auto finish = [&](int64_t row, const float* of_row) {
      Finish(own, samples, of_row, from.data(), masks.data(),
             da + ((row * n_.stride + own.first_row) * n_.width + own.first_column) * channels_);
    };
    if (own.slots == 0) {
      for (int64_t row = 0; row < own.rows; ++row) finish(row, sums);
      return;
    }
    const int64_t all = (filters_ + kFour - 1) / kFour;
    std::fill_n(rows, own.fours * kFour * own.lanes, 0.0f);
    const uint16_t* places = own.places.data();
    for (int64_t first = 0; first < all; first += own.fours) {
      const int64_t begin = first * kFour, count = std::min(own.fours * kFour, filters_ - begin);
      // Clear what the previous block left in rows beyond the last filter.
      if (count < own.fours * kFour)
        std::fill(rows + count * own.lanes, rows + own.fours * kFour * own.lanes, 0.0f);
      int64_t built = -1;  // rows of results up to this one have tables
      for (int64_t row = 0; row < own.rows; ++row) {
        float* of_row = sums + row % own.kept * SumsSize(own);
        const int64_t needed = row + own.last_step();
        for (int64_t next = std::max(built + 1, needed - own.slots + 1);
             next <= std::min(needed, n_.rows - 1); ++next) {
          for (int64_t sample = 0; sample < samples; ++sample)
            run_.to_rows(n_.columns, count, g + sample * g_sample + next * across * g_step + begin,
                         g_step, scale + begin, rows + sample * n_.columns, own.lanes);
          run_.row_tables(own.fours, own.lanes, rows, tables + next % own.slots * own.table);
          built = next;
        }
        AddRow(own, row, tables, places, first == 0, of_row);
        if (first + own.fours >= all) finish(row, of_row);
      }
      places += channels_ * own.places_of_channel();
    }
  }

  // Adds the tables of one block to the sums of a row of pixels.
  void AddRow(const Class& own, int64_t row, const float* tables, const uint16_t* places,
              bool fresh, float* sums) const {
    const float* table_of[kMostRows];
    int64_t begin = 0, taps = 0;
    auto flush = [&] {
      run_.add_rows(own.lanes, channels_ * own.across(), taps, table_of, own.fours, own.height(),
                    places + begin, own.fours * own.height(), fresh, sums, own.lanes);
      fresh = false;
      taps = 0;
    };
    for (int64_t i = 0; i < own.height(); ++i) {
      const int64_t meets = row + own.row_steps[i];
      if (meets < 0 || meets >= n_.rows) continue;
      if (taps == 0) begin = i;
      table_of[taps++] = tables + meets % own.slots * own.table;
      if (taps == kMostRows) flush();
    }
    if (taps > 0) flush();
    if (fresh) std::fill_n(sums, SumsSize(own), 0.0f);
  }

  // Adds up the columns of taps of a row of pixels, which begins at `da` in the first sample.
  // `from` and `masks` are scratch for as many pointers.
  void Finish(const Class& own, int64_t samples, const float* sums, const float** from,
              const int32_t** masks, float* da) const {
    for (int64_t sample = 0; sample < samples; ++sample) {
      for (int64_t i = 0; i < own.across(); ++i) {
        from[i] = sums + i * own.lanes + sample * n_.columns + own.column_steps[i];
        masks[i] = own.masks.data() + i * own.mask;
      }
      run_.join_rows(own.columns, channels_, own.across(), from, masks, own.across() * own.lanes,
                     da + sample * n_.height * n_.width * channels_, n_.stride * channels_);
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
