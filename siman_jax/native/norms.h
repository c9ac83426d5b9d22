// Batch norm for training, with the shortcut and the activation after it.

#ifndef SIMAN_NORMS_H_
#define SIMAN_NORMS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "training.h"

namespace siman {

// Rows of the array [7, channels] that describes a norm and its gradient; the norm needs only the
// first four.
enum { kCentre, kGain, kOffset, kSlope, kScale, kShift, kSlant };

inline BatchNorm NormOf(const float* rows, int64_t channels, Activation activation) {
  return {rows + kCentre * channels, rows + kGain * channels, rows + kOffset * channels,
          activation == Activation::kPRelu ? rows + kSlope * channels : nullptr, activation};
}

inline BatchNormGradient GradientOf(const float* rows, int64_t channels) {
  return {rows + kScale * channels, rows + kShift * channels, rows + kSlant * channels};
}

// Arrays are [samples, pixels, channels].
struct Samples {
  int64_t count, pixels, channels;

  int64_t size() const { return pixels * channels; }
};

// The part of an array that begins at number `at`.
inline const float* From(const float* x, int64_t at) { return x == nullptr ? nullptr : x + at; }
inline Numbers From(Numbers y, int64_t at) {
  if (y.floats != nullptr) return {y.floats + at, nullptr};
  return {nullptr, y.sums + at};
}

// A norm with its inputs. The shortcut may be null.
struct NormStep {
  BatchNorm norm;
  Numbers y;
  const float* shortcut;

  bool empty() const { return y.floats == nullptr && y.sums == nullptr; }
};

// Adds `norm_sums` of a sample whose results `out` are known.
inline void AddNormSums(const Training& run, int64_t pixels, int64_t channels,
                        const BatchNorm& norm, const float* dout, Numbers y, const float* shortcut,
                        const float* out, float* totals) {
  const auto slopes_are_large = [&] {
    return std::all_of(norm.slope, norm.slope + channels,
                       [](float slope) { return slope >= kLeastSlope; });
  };
  // One array less to read.
  if (norm.activation == Activation::kNone ||
      (norm.activation == Activation::kPRelu && slopes_are_large()))
    run.norm_sums_after(pixels, channels, norm, dout, y, out, totals);
  else
    run.norm_sums(pixels, channels, norm, dout, y, shortcut, totals);
}

// Computes mean and variance of every channel, from samples of equal size in any order.
class Statistics {
 public:
  Statistics(const Training& run, int64_t samples, int64_t pixels, int64_t channels)
      : run_(run),
        samples_(samples),
        pixels_(pixels),
        channels_(channels),
        parts_(samples * 2 * channels) {}

  void AddSample(int64_t sample, Numbers y) {
    float* mean = parts_.data() + sample * 2 * channels_;
    float* squares = mean + channels_;
    run_.add_up(pixels_, channels_, channels_, y, mean);
    for (int64_t c = 0; c < channels_; ++c) mean[c] /= static_cast<float>(pixels_);
    run_.add_up_squares(pixels_, channels_, y, mean, squares);
  }

  // Writes mean, and variance divided by the number of pixels: [2, channels].
  void Finish(float* statistics) const {
    for (int64_t c = 0; c < channels_; ++c) {
      double mean = 0, squares = 0;
      for (int64_t sample = 0; sample < samples_; ++sample) mean += Part(sample, 0, c);
      mean /= static_cast<double>(samples_);
      for (int64_t sample = 0; sample < samples_; ++sample) {
        const double away = Part(sample, 0, c) - mean;
        squares += Part(sample, 1, c) + static_cast<double>(pixels_) * away * away;
      }
      statistics[c] = static_cast<float>(mean);
      statistics[channels_ + c] =
          static_cast<float>(squares / (static_cast<double>(samples_) * pixels_));
    }
  }

 private:
  double Part(int64_t sample, int64_t which, int64_t c) const {
    return parts_[(sample * 2 + which) * channels_ + c];
  }

  const Training& run_;
  int64_t samples_, pixels_, channels_;
  std::vector<float> parts_;
};

// Sums of gradients over all samples, [3, channels], from those of each sample.
class GradientSums {
 public:
  GradientSums(int64_t samples, int64_t channels)
      : samples_(samples), size_(3 * channels), parts_(samples * size_) {}

  float* Part(int64_t sample) { return parts_.data() + sample * size_; }

  void Finish(float* sums) const {
    for (int64_t i = 0; i < size_; ++i) {
      double total = 0;
      for (int64_t sample = 0; sample < samples_; ++sample) total += parts_[sample * size_ + i];
      sums[i] = static_cast<float>(total);
    }
  }

 private:
  int64_t samples_, size_;
  std::vector<float> parts_;
};

// Computes mean and variance of every channel: [2, channels].
inline void RunNormStatistics(const Pool& pool, const Training& run, const Samples& all, Numbers y,
                              float* statistics) {
  Statistics parts(run, all.count, all.pixels, all.channels);
  auto add = [&](int64_t sample, int64_t) {
    parts.AddSample(sample, From(y, sample * all.size()));
  };
  auto finish = [&](int64_t, int64_t) { parts.Finish(statistics); };
  RunPhases(pool, Workers(pool), {{all.count, add}, {1, finish}});
}

// Here and below, the shortcut may be null.
inline void RunNormForward(const Pool& pool, const Training& run, const Samples& all,
                           const BatchNorm& norm, Numbers y, const float* shortcut, float* out) {
  auto normalize = [&](int64_t sample, int64_t) {
    const int64_t at = sample * all.size();
    run.norm(all.pixels, all.channels, norm, From(y, at), From(shortcut, at), out + at);
  };
  RunPhases(pool, Workers(pool), {{all.count, normalize}});
}

// Computes `norm_sums` over all samples: [3, channels].
inline void RunNormSums(const Pool& pool, const Training& run, const Samples& all,
                        const BatchNorm& norm, const float* dout, Numbers y, const float* shortcut,
                        float* sums) {
  GradientSums parts(all.count, all.channels);
  auto add = [&](int64_t sample, int64_t) {
    const int64_t at = sample * all.size();
    run.norm_sums(all.pixels, all.channels, norm, dout + at, From(y, at), From(shortcut, at),
                  parts.Part(sample));
  };
  auto finish = [&](int64_t, int64_t) { parts.Finish(sums); };
  RunPhases(pool, Workers(pool), {{all.count, add}, {1, finish}});
}

// dz may be null.
inline void RunNormBackward(const Pool& pool, const Training& run, const Samples& all,
                            const BatchNorm& norm, const BatchNormGradient& gradient,
                            const float* dout, Numbers y, const float* shortcut, float* dy,
                            float* dz) {
  auto back = [&](int64_t sample, int64_t) {
    const int64_t at = sample * all.size();
    run.norm_gradient(all.pixels, all.channels, norm, gradient, all.channels, dout + at,
                      From(y, at), From(shortcut, at), all.channels, dy + at,
                      dz == nullptr ? nullptr : dz + at);
  };
  RunPhases(pool, Workers(pool), {{all.count, back}});
}

}  // namespace siman

#endif  // SIMAN_NORMS_H_
