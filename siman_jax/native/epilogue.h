// Operations on single numbers that follow an operation and are computed together with it.

#ifndef SIMAN_EPILOGUE_H_
#define SIMAN_EPILOGUE_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "plan.h"
#include "program.h"
#include "variant.h"

namespace siman {

// y = clip(PReLU(gain * x + offset + more)). Operations join in this order, each at most once; but
// several affine ones become one.
class Epilogue {
 public:
  explicit Epilogue(int64_t channels) {
    // Blocks of filters may end beyond the channels.
    const int64_t size = RoundUp(channels, kLanes) + kFilters;
    gain_.assign(size, 1);
    offset_.assign(size, 0);
    slope_.assign(size, 1);
  }

  // Adds an operation and returns true, or returns false if it cannot be added any more. An Add
  // needs `SetMore` too.
  bool Take(const Operation& next) {
    switch (next.kind) {
      case Kind::kAffine: {
        if (last_ > kScaled) return false;
        const Tensor &scale = next.weights[0], &shift = next.weights[1];
        for (int64_t i = 0; i < next.sizes.back(); ++i) {
          if (scale.present) {
            gain_[i] *= scale.floats[i];
            offset_[i] *= scale.floats[i];
          }
          if (shift.present) offset_[i] += shift.floats[i];
        }
        last_ = kScaled;
        return true;
      }
      case Kind::kAdd:
        if (last_ >= kAdded) return false;
        adds_ = true;
        last_ = kAdded;
        return true;
      case Kind::kPRelu:
        if (last_ >= kBent) return false;
        for (int64_t i = 0; i < next.sizes.back(); ++i) slope_[i] = next.weights[0].floats[i];
        last_ = kBent;
        return true;
      case Kind::kClip:
        if (last_ >= kClipped) return false;
        least_ = next.weights[0].floats[0];
        most_ = next.weights[0].floats[1];
        last_ = kClipped;
        return true;
      default: return false;
    }
  }

  void SetMore(const Place& more) { more_ = more; }
  // Whether it is max(gain * x + offset, least).
  bool is_norm() const {
    return !adds_ && most_ == kInfinity &&
           std::all_of(slope_.begin(), slope_.end(), [](float x) { return x == 1; });
  }

  Finish from(int64_t filter) const {
    return {gain_.data() + filter, offset_.data() + filter, slope_.data() + filter, least_, most_};
  }
  // What is added to a frame's numbers; null if nothing is.
  const float* more(const Frame& frame) const { return adds_ ? frame.at(more_) : nullptr; }

 private:
  enum Stage { kNothing, kScaled, kAdded, kBent, kClipped };

  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  Aligned<float> gain_, offset_, slope_;
  float least_ = -kInfinity, most_ = kInfinity;
  bool adds_ = false;
  Place more_;
  Stage last_ = kNothing;
};

}  // namespace siman

#endif  // SIMAN_EPILOGUE_H_
