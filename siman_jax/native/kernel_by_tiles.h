// The kernel's gradient as a product of matrices, for processors with a matrix unit.
//
// Signs are stored as padded images, channel by channel, with 0 for padding. Results are stored at
// the place of their first tap, as pairs of neighbours. So each tap is a fixed distance between the
// two.

#ifndef SIMAN_KERNEL_BY_TILES_H_
#define SIMAN_KERNEL_BY_TILES_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "tiles.h"
#include "training.h"
#include "variant.h"

namespace siman {

class KernelByTiles {
 public:
  static bool Covers(const Variant& variant, const Convolution& n, int64_t channels,
                     int64_t filters) {
    // With fewer results, loading sums takes longer than looking them up.
    constexpr int64_t kFewest = 8;
    return variant.tiles != nullptr && n.stride == 1 && channels % kTile == 0 &&
           filters % kTile == 0 && n.columns >= kFewest;
  }

  // Floats of scratch for that many samples at a time.
  static int64_t ScratchSize(const Convolution& n, int64_t channels, int64_t samples) {
    return channels * SignsStep(n, samples) / 2 + kParts * Length(n, samples) / 2 * kTile;
  }

  // `sums` [blocks of filters, taps, channels, kTile] need not be initialized. `scratch` must be 0,
  // or left over from a gradient of the same sizes.
  KernelByTiles(const Variant& variant, const Convolution& n, int64_t channels, int64_t filters,
                int64_t samples, float* sums, float* scratch)
      : tiles_(*variant.tiles),
        n_(n),
        channels_(channels),
        filters_(filters),
        length_(Length(n, samples)),
        signs_step_(SignsStep(n, samples)),
        sums_(sums),
        signs_(reinterpret_cast<uint16_t*>(scratch)),
        pairs_(reinterpret_cast<uint32_t*>(scratch + channels * signs_step_ / 2)) {}

  // Stores the signs of a sample x [height, width, channels]: +1 where x >= least.
  void Load(int64_t sample, const float* x, float least) {
    for (int64_t row = 0; row < n_.height; ++row)
      for (int64_t channel = 0; channel < channels_; channel += kTile)
        tiles_.transpose(n_.width, x + row * n_.width * channels_ + channel, channels_, least,
                         signs_ + channel * signs_step_ + sample * Sample(n_) +
                             (row + n_.top) * Pitch(n_) + n_.left,
                         signs_step_);
  }

  // Adds the contribution of the loaded samples. `g` is [samples, g_sample], rows of `across`
  // pixels that are g_step numbers apart, and 0 outside of the gradient.
  void Add(int64_t samples, const float* g, int64_t g_sample, int64_t across, int64_t g_step) {
    tiles_.begin(kTile);
    for (int64_t filter = 0; filter < filters_; filter += kTile) {
      for (int64_t sample = 0; sample < samples; ++sample)
        for (int64_t row = 0; row < n_.rows; ++row)
          tiles_.pair_up(
              (n_.columns + 1) / 2, g + sample * g_sample + row * across * g_step + filter, g_step,
              pairs_ + (sample * Sample(n_) + row * Pitch(n_)) / 2 * kTile, length_ / 2 * kTile);
      const int64_t steps = Length(n_, samples) / kStep;
      for (int64_t step = 0; step < steps; step += kSteps)
        Multiply(step, std::min(kSteps, steps - step), fresh_ && step == 0,
                 sums_ + filter * n_.taps_down * n_.taps_across * channels_);
    }
    tiles_.end();
    fresh_ = false;
  }

 private:
  static constexpr int64_t kStep = 2 * kTile;  // results in a product
  static constexpr int64_t kSteps = 8;         // products whose results fit the first cache
  static constexpr int64_t kTaps = 3;          // taps at a time

  // Places in a row of results and in a sample, both even.
  static int64_t Pitch(const Convolution& n) { return RoundUp(n.padded_width, 2); }
  static int64_t Sample(const Convolution& n) { return n.padded_height * Pitch(n); }
  // Places of the results of samples, and of the signs that belong to them.
  static int64_t Length(const Convolution& n, int64_t samples) {
    return RoundUp((samples - 1) * Sample(n) + n.rows * Pitch(n), kStep);
  }
  static int64_t SignsStep(const Convolution& n, int64_t samples) {
    return RoundUp(Length(n, samples) + n.taps_down * Pitch(n) + n.taps_across, kStep);
  }

  void Multiply(int64_t step, int64_t steps, bool fresh, float* sums) const {
    for (int64_t channel = 0; channel < channels_; channel += kTile) {
      for (int64_t down = 0; down < n_.taps_down; ++down) {
        for (int64_t right = 0; right < n_.taps_across; right += kTaps) {
          const uint16_t* signs[kTaps];
          float* to[kTaps];
          const int64_t taps = std::min(kTaps, n_.taps_across - right);
          for (int64_t i = 0; i < taps; ++i) {
            signs[i] = signs_ + channel * signs_step_ + step * kStep + down * Pitch(n_) + right + i;
            to[i] = sums + ((down * n_.taps_across + right + i) * channels_ + channel) * kTile;
          }
          tiles_.accumulate(taps, steps, signs, signs_step_, pairs_ + step * kTileSize,
                            length_ / 2 * kTile, fresh, to);
        }
      }
    }
  }

  const Tiles& tiles_;
  const Convolution& n_;
  int64_t channels_, filters_, length_, signs_step_;
  float* sums_;
  uint16_t* signs_;  // bfloat16 [channels, signs_step_]
  uint32_t* pairs_;  // [kParts, length_ / 2, kTile], for one block of filters
  bool fresh_ = true;
};

}  // namespace siman

#endif  // SIMAN_KERNEL_BY_TILES_H_
