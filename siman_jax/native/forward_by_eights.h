// The forward direction of a binary convolution by look-ups of counts.
//
// Channels are taken eight at a time. The bits of eight channels at a pixel are a byte, which has a
// row in a table: for each half of the byte, in how many bits it differs from each of the sixteen
// halves of a kernel's byte. One instruction looks up sixteen filters in both halves of a row.

#ifndef SIMAN_FORWARD_BY_EIGHTS_H_
#define SIMAN_FORWARD_BY_EIGHTS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "training.h"
#include "variant.h"

namespace siman {

class ForwardByEights {
 public:
  static bool Covers(const Training& run, const Convolution& n, int64_t channels, int64_t filters) {
    constexpr int64_t kMost = 32767;  // a sum that 16 bits hold
    return run.multiply_eights != nullptr && channels % kEight == 0 &&
           filters % kTableFilters == 0 && n.taps_down * n.taps_across * channels <= kMost;
  }

  // `code` is the kernel [taps down, taps across, channels, filters]; values >= 0 count as +1.
  ForwardByEights(const Training& run, const Convolution& n, int64_t channels, int64_t filters,
                  const float* code)
      : run_(run),
        n_(n),
        channels_(channels),
        filters_(filters),
        eights_(channels / kEight),
        code_(code),
        kernel_(2 * values() * filters) {
    for (int64_t row = 0; row < n.taps_down; ++row)
      for (int64_t value = 0; value < n.taps_across * eights_; ++value)
        offsets_.push_back(static_cast<int32_t>(row * image_row() + value));
  }

  // All of these tasks, one for each tap, have to be prepared before `Run`.
  void Prepare(int64_t tap) {
    std::vector<uint8_t> bytes(kEight * filters_);
    for (int64_t value = tap * eights_; value < (tap + 1) * eights_; ++value) {
      run_.to_bytes(kEight * filters_, code_ + value * kEight * filters_, 0.0f, bytes.data());
      for (int64_t filter = 0; filter < filters_; filter += kTableFilters) {
        const int64_t range = filter / kAtOnce * kAtOnce, blocks = Blocks(range);
        uint8_t* to = kernel_.data() + 2 * range * values() +
                      (value * blocks + (filter - range) / kTableFilters) * kCountsOfEight;
        const uint8_t* from = bytes.data() + filter;
        for (int half = 0; half < 2; ++half, from += kFour * filters_, to += kTableFilters)
          for (int64_t f = 0; f < kTableFilters; ++f)
            to[f] = static_cast<uint8_t>((from[f] + 2 * from[filters_ + f] +
                                          4 * from[2 * filters_ + f] + 8 * from[3 * filters_ + f]) /
                                         kBit);
      }
    }
  }

  // Numbers in the padded image of a sample.
  int64_t image_size() const { return n_.padded_height * image_row(); }

  // Writes the padded image of a sample; padding must already be kNoEight.
  void Image(const float* x, float least, uint16_t* image) const {
    const int64_t row_size = n_.width * channels_;
    for (int64_t row = 0; row < n_.height; ++row)
      run_.eights(row_size, x + row * row_size, least,
                  image + (row + n_.top) * image_row() + n_.left * eights_);
  }

  // Computes the sums of a sample, [rows, columns, filters].
  void Run(const uint16_t* image, int16_t* sums) const {
    for (int64_t filter = 0; filter < filters_; filter += kAtOnce)
      for (int64_t row = 0; row < n_.rows; ++row)
        run_.multiply_eights(values(), offsets_.data(), n_.columns, n_.stride * eights_,
                             image + row * n_.stride * image_row(), Blocks(filter),
                             kernel_.data() + 2 * filter * values(), filters_,
                             sums + row * n_.columns * filters_ + filter);
  }

 private:
  static constexpr int64_t kAtOnce = 2 * kTableFilters;  // filters

  int64_t values() const { return n_.taps_down * n_.taps_across * eights_; }
  int64_t image_row() const { return n_.padded_width * eights_; }
  // Blocks of filters that are multiplied together.
  int64_t Blocks(int64_t filter) const {
    return std::min(kAtOnce, filters_ - filter) / kTableFilters;
  }

  const Training& run_;
  const Convolution& n_;
  int64_t channels_, filters_;
  int64_t eights_;  // of a pixel's channels
  const float* code_;
  std::vector<uint8_t> kernel_;   // by range of kAtOnce filters: [values, blocks, 2, kTableFilters]
  std::vector<int32_t> offsets_;  // of values in the image
};

}  // namespace siman

#endif  // SIMAN_FORWARD_BY_EIGHTS_H_
