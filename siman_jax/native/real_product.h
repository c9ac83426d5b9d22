// A convolution with a real kernel, and the operations fused into it.

#ifndef SIMAN_REAL_PRODUCT_H_
#define SIMAN_REAL_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "binary_product.h"
#include "convolution.h"
#include "epilogue.h"
#include "plan.h"
#include "program.h"
#include "tasks.h"
#include "variant.h"

namespace siman {

// A kernel of +1 and -1 as floats [rows, channels, out], from its words [rows, words, out].
inline std::vector<float> UnpackedWords(const Tensor& words, int64_t rows, int64_t channels) {
  const int64_t out = words.sizes.back(), depth = (channels + kWordBits - 1) / kWordBits;
  std::vector<float> kernel(rows * channels * out);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t o = 0; o < out; ++o) {
        const uint32_t word = words.words[(row * depth + c / kWordBits) * out + o];
        kernel[(row * channels + c) * out + o] = (word >> c % kWordBits & 1) != 0 ? 1.0f : -1.0f;
      }
  return kernel;
}

class RealProduct {
 public:
  // `kernel` is [down, across, in / groups, out].
  RealProduct(const Variant& run, const Value& x, const Value& y, const Window& window,
              int64_t groups, const std::vector<float>& kernel, Epilogue epilogue)
      : run_(run),
        groups_(groups),
        depth_(x.channels / groups),
        filters_(y.channels / groups),
        by_channel_(depth_ == 1 && filters_ == 1 && groups > 1),
        n_(ConvolutionOf(x, y, window)),
        down_(window.dilation_down),
        across_(window.dilation_across),
        x_lanes_(x.lanes),
        channels_(x.channels),
        direct_(n_.top + n_.left + window.bottom + window.right == 0 && groups == 1 &&
                (n_.taps_across == 1 || x.lanes == x.channels)),
        epilogue_(std::move(epilogue)),
        tasks_(n_.results(), n_.out, n_.kernel_values()) {
    Arrange(kernel, window, y.channels);
  }

  Place x;
  const Buffer *y, *padded = nullptr, *totals = nullptr;

  bool direct() const { return direct_; }
  bool one_group() const { return groups_ == 1; }
  // Of the padded image: for each group, or, if every channel is a group, for all together.
  int64_t padded_size() const { return planes() * n_.padded_height * row_size(); }
  int64_t rows() const { return planes() * n_.padded_height; }
  int64_t tasks() const { return by_channel_ ? n_.rows : groups_ * tasks_.count(); }

  // Copies rows of the padded image.
  void Pad(const Frame& frame, int64_t begin, int64_t end) const {
    const int64_t depth = pixel_size(), copied = by_channel_ ? channels_ : depth_;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t plane = index / n_.padded_height, row = index % n_.padded_height - n_.top;
      float* to = frame.at(padded) + index * row_size();
      if (row < 0 || row >= n_.height) {
        std::fill_n(to, row_size(), 0.0f);
        continue;
      }
      const float* from = frame.at(x) + row * n_.width * x_lanes_ + plane * depth_;
      float* after = std::fill_n(to, n_.left * depth, 0.0f) + n_.width * depth;
      std::fill(after, to + row_size(), 0.0f);
      to += n_.left * depth;
      if (x_lanes_ == depth && copied == depth) {
        std::copy_n(from, n_.width * depth, to);
        continue;
      }
      for (int64_t i = 0; i < n_.width; ++i, from += x_lanes_, to += depth)
        std::fill(std::copy_n(from, copied, to), to + depth, 0.0f);
    }
  }

  void Multiply(const Frame& frame, int64_t begin, int64_t end) const {
    for (int64_t task = begin; task < end; ++task) {
      if (by_channel_)
        MultiplyChannels(frame, task);
      else
        MultiplyTask(frame, task / tasks_.count(), task % tasks_.count());
    }
  }

 private:
  // Its taps are those of the kernel without dilation between rows; `Arrange` fills the gaps in a
  // row with zeros.
  Convolution ConvolutionOf(const Value& x, const Value& y, const Window& w) const {
    return {x.sizes[0],
            x.sizes[1],
            x.sizes[0] + w.top + w.bottom,
            x.sizes[1] + w.left + w.right,
            depth_,
            w.down,
            by_channel_ ? w.across : w.span_across(),
            y.sizes[0],
            y.sizes[1],
            by_channel_ ? y.lanes : RoundUp(filters_, kLanes),
            w.top,
            w.left,
            w.stride_down,
            w.stride_across};
  }

  int64_t planes() const { return by_channel_ ? 1 : groups_; }
  int64_t pixel_size() const {
    if (direct_) return x_lanes_;
    return by_channel_ ? n_.out : depth_;
  }
  int64_t row_size() const { return n_.padded_width * pixel_size(); }

  void Arrange(const std::vector<float>& kernel, const Window& w, int64_t out) {
    if (by_channel_) {  // [taps, lanes]
      kernel_.assign(w.down * w.across * n_.out, 0);
      for (int64_t tap = 0; tap < w.down * w.across; ++tap)
        std::copy_n(kernel.data() + tap * out, out, kernel_.data() + tap * n_.out);
      return;
    }
    for (int64_t group = 0; group < groups_; ++group) {
      std::vector<float> own(n_.kernel_values() * filters_);
      for (int64_t row = 0; row < w.down; ++row)
        for (int64_t column = 0; column < w.across; ++column)
          for (int64_t c = 0; c < depth_; ++c)
            std::copy_n(
                kernel.data() + ((row * w.across + column) * depth_ + c) * out + group * filters_,
                filters_,
                own.data() +
                    ((row * n_.taps_across + column * w.dilation_across) * depth_ + c) * filters_);
      const Aligned<float> blocks = Blocks(own, n_.kernel_values(), filters_, n_.out);
      kernel_.insert(kernel_.end(), blocks.begin(), blocks.end());
    }
  }

  // Where the first tap of a result is.
  const float* First(const Frame& frame, int64_t plane, int64_t row, int64_t column) const {
    const float* image = direct_ ? frame.at(x) : frame.at(padded);
    return image + (plane * n_.padded_height + row * n_.stride) * row_size() +
           column * n_.stride_across() * pixel_size();
  }

  void MultiplyTask(const Frame& frame, int64_t group, int64_t task) const {
    const int64_t filter = tasks_.filter(task), filters = tasks_.filters(task);
    const int64_t lanes = groups_ == 1 ? n_.out : RoundUp(groups_ * filters_, kLanes);
    const int64_t channel = group * filters_ + filter;
    const Finish finish = epilogue_.from(channel);
    const float* more = epilogue_.more(frame);
    const Taps taps{n_.taps_down, n_.taps_across * depth_, down_ * row_size(), filters};
    const float* kernel = kernel_.data() + (group * n_.out + filter) * n_.kernel_values();
    float sum[kLanes] = {};
    ForGroups(n_, tasks_.begin(task), tasks_.end(task), [&](int64_t first, const Group& pixels) {
      const float* seen[kPixels];
      float products[kPixels][kFilters], results[kPixels][kFilters], added[kPixels][kFilters];
      float *sums_of[kPixels], *to[kPixels], *own[kPixels];
      const float* more_of[kPixels];
      for (int64_t p = 0; p < kPixels; ++p) {
        seen[p] = First(frame, group, pixels.rows[p], pixels.columns[p]);
        sums_of[p] = products[p];
        const int64_t place = (first + std::min(p, pixels.count - 1)) * lanes + channel;
        own[p] = frame.at(y) + place;
        // The lanes after a group's filters belong to the next group.
        to[p] = groups_ == 1 ? own[p] : results[p];
        more_of[p] = more + (more == nullptr ? 0 : place);
        if (more != nullptr && groups_ != 1) {
          std::copy_n(more_of[p], std::min(filters, filters_ - filter), added[p]);
          more_of[p] = added[p];
        }
      }
      run_.multiply_floats(taps, seen, kernel, filters, sums_of);
      run_.finish_floats(finish, pixels.count, filters, sums_of,
                         more == nullptr ? nullptr : more_of, to, sum);
      if (groups_ == 1) return;
      for (int64_t p = 0; p < pixels.count; ++p)
        std::copy_n(results[p], std::min(filters, filters_ - filter), own[p]);
    });
    if (totals != nullptr) frame.at(totals)[task] = Total(sum);
  }

  // A row of results where every channel has a filter of its own.
  void MultiplyChannels(const Frame& frame, int64_t row) const {
    const float* more = epilogue_.more(frame);
    for (int64_t column = 0; column < n_.columns; ++column) {
      const float* image = First(frame, 0, row, column);
      for (int64_t first = 0; first < n_.out; first += kFilters) {
        const int64_t filters = std::min(kFilters, n_.out - first);
        const int64_t place = (row * n_.columns + column) * n_.out + first;
        float sums[kFilters] = {}, unused[kLanes] = {};
        for (int64_t tap = 0; tap < n_.taps_down * n_.taps_across; ++tap) {
          const float* seen = image + tap / n_.taps_across * down_ * row_size() +
                              tap % n_.taps_across * across_ * pixel_size() + first;
          const float* kernel = kernel_.data() + tap * n_.out + first;
          for (int64_t i = 0; i < filters; ++i) sums[i] += seen[i] * kernel[i];
        }
        const float *own = sums, *added = more + (more == nullptr ? 0 : place);
        float* to = frame.at(y) + place;
        run_.finish_floats(epilogue_.from(first), 1, filters, &own,
                           more == nullptr ? nullptr : &added, &to, unused);
      }
    }
  }

  const Variant& run_;
  const int64_t groups_, depth_, filters_;  // channels and filters of a group
  const bool by_channel_;                   // every channel is a group, with one filter
  const Convolution n_;
  const int64_t down_, across_;  // dilation
  const int64_t x_lanes_, channels_;
  const bool direct_;  // the image is read where it is, since it needs no padding
  const Epilogue epilogue_;
  const Tasks tasks_;
  Aligned<float> kernel_;
};

}  // namespace siman

#endif  // SIMAN_REAL_PRODUCT_H_
