// A convolution of signs with a kernel of signs, and the operations fused into it.
//
// Signs are packed into words of bits. Where channels fill their words badly, such as 16 of 32
// bits, a row of pixels is packed without gaps instead, and the bits of all taps of a result are
// gathered to one record.

#ifndef SIMAN_BINARY_PRODUCT_H_
#define SIMAN_BINARY_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "convolution.h"
#include "epilogue.h"
#include "plan.h"
#include "program.h"
#include "tasks.h"
#include "variant.h"

namespace siman {

// Rearranges a kernel [values, out] into blocks of up to kFilters filters, each contiguous: the
// block whose first filter is f begins at f * values. `lanes` is out in whole lanes.
template <typename T>
Aligned<T> Blocks(const std::vector<T>& kernel, int64_t values, int64_t out, int64_t lanes) {
  Aligned<T> blocks(values * lanes);
  for (int64_t first = 0; first < lanes; first += kFilters) {
    const int64_t filters = std::min(kFilters, lanes - first), end = std::min(filters, out - first);
    for (int64_t value = 0; value < values; ++value)
      std::copy_n(kernel.data() + value * out + first, std::max<int64_t>(0, end),
                  blocks.data() + first * values + value * filters);
  }
  return blocks;
}

// Which numbers become +1: those from a threshold on.
struct Threshold {
  bool centred;                    // at the mean of all numbers
  float least;                     // else this,
  std::vector<float> per_channel;  // or these if they differ

  explicit Threshold(const Tensor& given) : centred(!given.present), least(0) {
    if (centred) return;
    const std::vector<float>& all = given.floats;
    least = all[0];
    if (std::any_of(all.begin(), all.end(), [&](float x) { return !(x == least); }))
      per_channel = all;
  }
};

class BinaryProduct {
 public:
  // The operand has channels in whole lanes. `window` and `words` are those of a convolution.
  BinaryProduct(const Variant& run, const Value& x, const Value& y, const Window& window,
                const Tensor& words, Threshold threshold, Epilogue epilogue)
      : run_(run),
        n_(ConvolutionOf(x, y, window)),
        channels_(x.channels),
        x_lanes_(x.lanes),
        x_count_(x.count()),
        threshold_(std::move(threshold)),
        epilogue_(std::move(epilogue)),
        bytes_((channels_ + 7) / 8),
        record_((window.down * window.across * bytes_ + 3) / 4),
        gathered_(record_ < n_.kernel_values() && record_ <= kMostRecord),
        tasks_(n_.results(), n_.out, gathered_ ? record_ : n_.kernel_values()) {
    SumCorners(words.words, y.channels);
    if (gathered_) {
      kernel_ = Blocks(Records(words.words, y.channels), record_, y.channels, n_.out);
      const int64_t used = window.down * window.across * bytes_ * 8 % kWordBits;
      if (used != 0) last_word_ = (uint32_t{1} << used) - 1;
    } else {
      kernel_ = Blocks(words.words, n_.kernel_values(), y.channels, n_.out);
    }
    if (run_.arrange_bits == nullptr) return;
    const int64_t values = gathered_ ? record_ : n_.kernel_values();
    for (int64_t first = 0; first < n_.out; first += kFilters)
      run_.arrange_bits(values, std::min(kFilters, n_.out - first),
                        kernel_.data() + first * values);
  }

  // Places; `sums` of the operand are needed for a centred threshold, `totals` may be null.
  Place x;
  const Buffer *y, *bits, *sums = nullptr, *totals = nullptr;
  int64_t sum_count = 0;

  int64_t bits_size() const {  // floats
    return gathered_ ? (n_.padded_height * row_bytes() + kAtOnce + 3) / 4 : n_.padded_size();
  }
  // Of one thread: a row of numbers, and its bits.
  int64_t scratch_size() const { return 2 * n_.width * x_lanes_; }
  int64_t rows() const { return n_.padded_height; }
  const Tasks& tasks() const { return tasks_; }
  const Threshold& threshold() const { return threshold_; }

  // Packs rows of the padded image.
  void Pack(const Frame& frame, int64_t begin, int64_t end) const {
    float least = threshold_.least;
    if (threshold_.centred) {
      double sum = 0;
      for (int64_t i = 0; i < sum_count; ++i) sum += frame.at(sums)[i];
      least = static_cast<float>(sum / static_cast<double>(x_count_));
    }
    for (int64_t index = begin; index < end; ++index) PackRow(frame, index, least);
  }

  void Multiply(const Frame& frame, int64_t begin, int64_t end) const {
    for (int64_t task = begin; task < end; ++task) MultiplyTask(frame, task);
  }

 private:
  static constexpr int64_t kMostRecord = 64;  // words
  static constexpr int64_t kAtOnce = 8;       // bytes that gathering copies at least

  static Convolution ConvolutionOf(const Value& x, const Value& y, const Window& w) {
    return {x.sizes[0],
            x.sizes[1],
            x.sizes[0] + w.top + w.bottom,
            x.sizes[1] + w.left + w.right,
            (x.channels + kWordBits - 1) / kWordBits,
            w.down,
            w.across,
            y.sizes[0],
            y.sizes[1],
            y.lanes,
            w.top,
            w.left,
            w.stride_down,
            w.stride_across};
  }

  int64_t row_bytes() const { return n_.padded_width * bytes_; }

  bool IsOne(const std::vector<uint32_t>& words, int64_t out, int64_t tap, int64_t channel,
             int64_t filter) const {
    const uint32_t word = words[(tap * n_.depth + channel / kWordBits) * out + filter];
    return (word >> channel % kWordBits & 1) != 0;
  }

  // See `AddPadding`.
  void SumCorners(const std::vector<uint32_t>& words, int64_t out) {
    const int64_t across = n_.taps_across + 1;
    corners_.assign((n_.taps_down + 1) * across * n_.out, 0);
    for (int64_t row = 1; row <= n_.taps_down; ++row) {
      for (int64_t column = 1; column < across; ++column) {
        const int64_t tap = (row - 1) * n_.taps_across + column - 1;
        int32_t* to = corners_.data() + (row * across + column) * n_.out;
        for (int64_t o = 0; o < out; ++o) {
          int32_t ones = 0;
          for (int64_t word = 0; word < n_.depth; ++word)
            ones += __builtin_popcount(words[(tap * n_.depth + word) * out + o]);
          to[o] = 2 * ones - static_cast<int32_t>(channels_) + to[o - n_.out] +
                  to[o - across * n_.out] - to[o - (across + 1) * n_.out];
        }
      }
    }
  }

  // The kernel as records [words, out].
  std::vector<uint32_t> Records(const std::vector<uint32_t>& words, int64_t out) const {
    std::vector<uint32_t> records(record_ * out);
    for (int64_t tap = 0; tap < n_.taps_down * n_.taps_across; ++tap) {
      for (int64_t channel = 0; channel < channels_; ++channel) {
        const int64_t bit = tap * bytes_ * 8 + channel;
        for (int64_t o = 0; o < out; ++o)
          if (IsOne(words, out, tap, channel, o))
            records[bit / kWordBits * out + o] |= uint32_t{1} << bit % kWordBits;
      }
    }
    return records;
  }

  void PackRow(const Frame& frame, int64_t index, float least) const {
    const int64_t row = index - n_.top, length = n_.width * x_lanes_;
    const bool inside = row >= 0 && row < n_.height;
    const float* from = frame.at(x) + row * length;
    if (inside && !threshold_.per_channel.empty()) {
      float* to = frame.scratch;
      const float* thresholds = threshold_.per_channel.data();
      for (int64_t i = 0; i < n_.width; ++i)
        for (int64_t c = 0; c < channels_; ++c)
          to[i * x_lanes_ + c] = from[i * x_lanes_ + c] >= thresholds[c] ? 1.0f : -1.0f;
      from = to;
      least = 0;
    }
    if (gathered_)
      PackBytes(frame, index, inside ? from : nullptr, least);
    else
      PackWords(frame, index, inside ? from : nullptr, least);
  }

  // `from` is null for a row of padding.
  void PackWords(const Frame& frame, int64_t index, const float* from, float least) const {
    uint32_t* to = frame.as<uint32_t>(bits) + index * n_.image_row();
    std::fill_n(to, n_.left * n_.depth, 0);
    uint32_t *inside = to + n_.left * n_.depth, *after = inside + n_.width * n_.depth;
    std::fill(after, to + n_.image_row(), 0);
    if (from == nullptr) {
      std::fill(inside, after, 0);
    } else if (channels_ % kWordBits == 0) {
      run_.pack(n_.width * x_lanes_, from, least, inside);
    } else {
      const uint32_t last = (uint32_t{1} << channels_ % kWordBits) - 1;
      for (int64_t i = 0; i < n_.width; ++i, from += x_lanes_, inside += n_.depth) {
        run_.pack(x_lanes_, from, least, inside);
        inside[n_.depth - 1] &= last;
      }
    }
  }

  void PackBytes(const Frame& frame, int64_t index, const float* from, float least) const {
    uint8_t* to = frame.as<uint8_t>(bits) + index * row_bytes();
    std::memset(to, 0, row_bytes());
    if (from == nullptr) return;
    to += n_.left * bytes_;
    auto* words = reinterpret_cast<uint32_t*>(frame.scratch + n_.width * x_lanes_);
    if (channels_ == x_lanes_) {
      run_.pack(n_.width * x_lanes_, from, least, words);
      std::memcpy(to, words, n_.width * bytes_);
      return;
    }
    for (int64_t i = 0; i < n_.width; ++i, from += x_lanes_, to += bytes_) {
      run_.pack(x_lanes_, from, least, words);
      std::memcpy(to, words, bytes_);
      if (channels_ % 8 != 0) to[bytes_ - 1] &= (1 << channels_ % 8) - 1;
    }
  }

  // Copies the bits that all taps of each result see.
  void Gather(const Frame& frame, const Group& group, uint32_t (*records)[kMostRecord + 2]) const {
    const auto* all = frame.as<uint8_t>(bits);
    const int64_t span = n_.taps_across * bytes_;
    for (int64_t p = 0; p < kPixels; ++p) {
      const uint8_t* from = all + group.rows[p] * n_.stride * row_bytes() +
                            group.columns[p] * n_.stride_across() * bytes_;
      auto* to = reinterpret_cast<uint8_t*>(records[p]);
      records[p][record_ - 1] = 0;
      for (int64_t row = 0; row < n_.taps_down; ++row, from += row_bytes(), to += span) {
        if (span <= kAtOnce)  // what is beyond the span is overwritten, or masked
          std::memcpy(to, from, kAtOnce);
        else
          std::memcpy(to, from, span);
      }
      records[p][record_ - 1] &= last_word_;
    }
  }

  void MultiplyTask(const Frame& frame, int64_t task) const {
    const int64_t filter = tasks_.filter(task), filters = tasks_.filters(task);
    const Finish finish = epilogue_.from(filter);
    const float* more = epilogue_.more(frame);
    const auto terms = static_cast<int32_t>(n_.taps_down * n_.taps_across * channels_);
    const Taps taps = gathered_ ? Taps{1, record_, 0, filters} : n_.taps(filters);
    const uint32_t* kernel = kernel_.data() + filter * (gathered_ ? record_ : n_.kernel_values());
    const auto multiply =
        run_.arrange_bits == nullptr ? run_.multiply_bits : run_.multiply_arranged;
    float sum[kLanes] = {};
    ForGroups(n_, tasks_.begin(task), tasks_.end(task), [&](int64_t first, const Group& group) {
      const uint32_t* seen[kPixels];
      uint32_t records[kPixels][kMostRecord + 2];
      if (gathered_) {
        Gather(frame, group, records);
        for (int64_t p = 0; p < kPixels; ++p) seen[p] = records[p];
      } else {
        FirstTaps(n_, group, frame.as<uint32_t>(bits), seen);
      }
      int32_t products[kPixels][kFilters];
      int32_t* sums_of[kPixels];
      const float* more_of[kPixels];
      float* to[kPixels];
      for (int64_t p = 0; p < kPixels; ++p) {
        sums_of[p] = products[p];
        const int64_t place = (first + std::min(p, group.count - 1)) * n_.out + filter;
        to[p] = frame.at(y) + place;
        more_of[p] = more + (more == nullptr ? 0 : place);
      }
      multiply(taps, seen, kernel, filters, terms, sums_of);
      for (int64_t p = 0; p < group.count; ++p)
        AddPadding(run_, n_, group.rows[p], group.columns[p], corners_.data() + filter, filters,
                   sums_of[p]);
      run_.finish_sums(finish, group.count, filters, sums_of, more == nullptr ? nullptr : more_of,
                       to, sum);
    });
    if (totals != nullptr) frame.at(totals)[task] = Total(sum);
  }

  const Variant& run_;
  const Convolution n_;  // depth: words per pixel
  const int64_t channels_, x_lanes_, x_count_;
  const Threshold threshold_;
  const Epilogue epilogue_;
  const int64_t bytes_;   // of a pixel's bits
  const int64_t record_;  // words of a record
  const bool gathered_;
  const Tasks tasks_;
  uint32_t last_word_ = ~uint32_t{0};  // used bits of a record's last word
  Aligned<uint32_t> kernel_;
  Aligned<int32_t> corners_;
};

}  // namespace siman

#endif  // SIMAN_BINARY_PRODUCT_H_
