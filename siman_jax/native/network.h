// Builds a residual network from the arrays of its weights.

#ifndef SIMAN_NETWORK_H_
#define SIMAN_NETWORK_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "convolution.h"
#include "residual.h"
#include "stem.h"
#include "variant.h"

namespace siman {

struct Weight {
  const void* data;
  const int64_t* sizes;
};

// The weights in the order that `native.residual_logits` lists them.
class Weights {
 public:
  explicit Weights(std::vector<Weight> all) : all_(std::move(all)) {}

  Weight Next() { return all_[next_++]; }
  const float* Floats() { return static_cast<const float*>(Next().data); }
  Norm NextNorm() {
    const float* gain = Floats();
    return {gain, Floats()};
  }

 private:
  const std::vector<Weight> all_;
  size_t next_ = 0;
};

// What does not follow from the weights of a network. `strides` are those of the stem and the
// units, `channels` those of the images, the stem and the units. Widths in memory, which are
// multiples of kLanes, are those of the vectors among the weights.
struct NetworkShape {
  bool centred, pooled, real_shortcuts;
  std::vector<int64_t> strides, channels;
  int64_t height, width, classes;
};

// A convolution with a square kernel, padded so that an image keeps its size without stride.
inline Convolution SamePadded(int64_t height, int64_t width, int64_t depth, int64_t taps,
                              int64_t stride, int64_t out) {
  const int64_t before = (taps - 1) / 2, both = taps - 1;
  const int64_t rows = (height - 1) / stride + 1, columns = (width - 1) / stride + 1;
  return {height, width,   height + both, width + both, depth,  taps,  taps,
          rows,   columns, out,           before,       before, stride};
}

inline Network MakeNetwork(const Variant* variant, const NetworkShape& shape, Weights weights) {
  const std::vector<int64_t>&strides = shape.strides, &channels = shape.channels;
  Network network{variant, shape.centred, {}, {}, {}};

  const float* kernel = weights.Floats();
  const Weight gain = weights.Next();
  int64_t width = gain.sizes[0];
  network.stem = {
      SamePadded(shape.height, shape.width, channels[0], shape.pooled ? 7 : 3, strides[0], width),
      kernel,
      {static_cast<const float*>(gain.data), weights.Floats()},
      shape.pooled};
  int64_t rows = network.stem.rows(), columns = network.stem.columns();
  for (size_t i = 1; i < strides.size(); ++i) {
    Unit unit{};
    unit.words = static_cast<const uint32_t*>(weights.Next().data);
    const Weight sums = weights.Next();
    unit.corner_sums = static_cast<const int32_t*>(sums.data);
    const int64_t taps = sums.sizes[0] - 1, out = sums.sizes[2];
    unit.channels = channels[i];
    unit.in = width;
    unit.features = channels[i + 1];
    unit.conv = SamePadded(rows, columns, (unit.channels + kWordBits - 1) / kWordBits, taps,
                           strides[i], out);
    unit.norm = weights.NextNorm();
    unit.slope = weights.Floats();
    if (strides[i] != 1 || unit.channels != unit.features) {
      unit.shortcut = shape.real_shortcuts ? Shortcut::kReal : Shortcut::kZeros;
      if (shape.real_shortcuts) {
        unit.shortcut_kernel = weights.Floats();
        unit.shortcut_norm = weights.NextNorm();
      }
    }
    network.units.push_back(unit);
    rows = unit.conv.rows;
    columns = unit.conv.columns;
    width = out;
  }
  const Norm norm = weights.NextNorm();
  network.classifier = {norm, weights.Floats(), weights.Floats(), width, shape.classes};
  return network;
}

}  // namespace siman

#endif  // SIMAN_NETWORK_H_
