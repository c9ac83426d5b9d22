// The first layers of a network for large images as one step: a 7x7 convolution with stride 2, and
// 3x3 maxima with stride 2. `stem.h` tells how they are computed.

#ifndef SIMAN_POOLED_STEM_H_
#define SIMAN_POOLED_STEM_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "binary_product.h"
#include "epilogue.h"
#include "plan.h"
#include "program.h"
#include "stem.h"
#include "tasks.h"
#include "variant.h"

namespace siman {

class PooledStem {
 public:
  static bool Fits(const Operation& conv, const Operation& pool) {
    const Sizes& kernel = conv.weights[0].sizes;
    return conv.kind == Kind::kConv && kernel[0] == 7 && kernel[1] == 7 &&
           conv.numbers == Sizes{2, 2, 3, 3, 3, 3, 1, 1, 1} && pool.kind == Kind::kMaxPool &&
           pool.numbers == Sizes{3, 3, 2, 2, 1, 1, 1, 1};
  }

  // `inner` follows the convolution and has neither a PReLU nor an addition; `outer` follows the
  // maxima.
  PooledStem(const Variant& run, const Value& x, const Value& conv,
             const std::vector<float>& kernel, Epilogue inner, Epilogue outer)
      : run_(run), inner_(std::move(inner)), outer_(std::move(outer)) {
    const int64_t depth = x.channels;
    const Convolution n{x.sizes[0], x.sizes[1],    x.sizes[0] + 6, x.sizes[1] + 6, depth, 7,
                        7,          conv.sizes[0], conv.sizes[1],  conv.lanes,     3,     3,
                        2};
    kernel_ = PairKernel(kernel, depth, conv.channels, conv.lanes);
    const Finish finish = inner_.from(0);
    stem_ = {n, kernel_.data(), finish.gain, finish.offset, finish.least};
  }
  PooledStem(const PooledStem&) = delete;

  Place x;
  const Buffer *y, *totals = nullptr;

  int64_t rows() const { return stem_.rows(); }
  int64_t scratch_size() const { return Offset() + 3 * stem_.columns() * stem_.conv.out; }

  void Run(const Frame& frame, int64_t begin, int64_t end) const {
    const int64_t length = stem_.columns() * stem_.conv.out;
    float* own = frame.scratch;
    const StemMemory memory{own, own + RoundUp(stem_.image_size(), kLanes), own + Offset()};
    float* to = frame.at(y) + begin * length;
    StemRows(run_, stem_, frame.at(x), begin, end, memory, to);
    const float* more = outer_.more(frame);
    for (int64_t row = begin; row < end; ++row, to += length) {
      float sum[kLanes] = {};
      for (int64_t i = 0; i < length; i += stem_.conv.out) {
        float* pixel = to + i;
        const float *product = pixel, *added = more + (more == nullptr ? 0 : row * length + i);
        run_.finish_floats(outer_.from(0), 1, stem_.conv.out, &product,
                           more == nullptr ? nullptr : &added, &pixel, sum);
      }
      if (totals != nullptr) frame.at(totals)[row] = Total(sum);
    }
  }

 private:
  int64_t Offset() const {
    return RoundUp(stem_.image_size(), kLanes) + RoundUp(stem_.row_size(), kLanes);
  }

  // The kernels of the four sums of `stem.h`, one after another.
  static Aligned<float> PairKernel(const std::vector<float>& kernel, int64_t depth, int64_t out,
                                   int64_t lanes) {
    auto tap = [&](int64_t row, int64_t column, int64_t i) {
      return kernel[(row * 7 + column) * depth * out + i];
    };
    Aligned<float> all;
    for (int sum = 0; sum < Stem::kSums; ++sum) {
      const int64_t taps = Stem::kTaps[sum];
      std::vector<float> own;
      for (int64_t row = 0; row < 7; ++row) {
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t i = 0; i < depth * out; ++i) {
            const float first = tap(row, t % 2, i), middle = tap(row, 2 + t % 2, i),
                        last = tap(row, 4 + t % 2, i);
            if (t == 2)
              own.push_back(tap(row, 6, i));
            else if (sum == 0)
              own.push_back(first);
            else if (sum == 3)
              own.push_back(last);
            else
              own.push_back((sum == 1 ? first + middle + last : first - middle + last) / 2);
          }
        }
      }
      const Aligned<float> blocks = Blocks(own, 7 * taps * depth, out, lanes);
      all.insert(all.end(), blocks.begin(), blocks.end());
    }
    return all;
  }

  const Variant& run_;
  const Epilogue inner_, outer_;
  Aligned<float> kernel_;
  Stem stem_;
};

}  // namespace siman

#endif  // SIMAN_POOLED_STEM_H_
