// A binary convolution for training: its sums, and both gradients.

#ifndef SIMAN_TRAINING_CONV_H_
#define SIMAN_TRAINING_CONV_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "convolution.h"
#include "forward_by_eights.h"
#include "input_by_pixels.h"
#include "input_by_rows.h"
#include "input_by_tiles.h"
#include "input_gradient.h"
#include "kernel_by_tiles.h"
#include "kernel_gradient.h"
#include "memory.h"
#include "norms.h"
#include "threads.h"
#include "training.h"
#include "variant.h"

namespace siman {

// The arrays are described in `siman_jax/native/convolution.py`.
struct TrainingConv {
  const Variant* variant;
  int64_t batch, channels, filters;
  Convolution n;  // depth in words of bits, out a multiple of kLanes
  const float* x;
  const float* code;  // [taps down, taps across, channels, filters]; values >= 0 count as +1
  bool centred;       // bits are signs about the sample's mean instead of 0

  int64_t sample() const { return n.height * n.width * channels; }
  int64_t results() const { return n.results() * filters; }  // of a sample
  int64_t taps() const { return n.taps_down * n.taps_across; }
  const Training& run() const { return *variant->training; }
};

inline TrainingConv MakeTrainingConv(const Variant* variant, const int64_t* image,
                                     const int64_t* kernel, const int64_t* result, int64_t stride,
                                     int64_t top, int64_t left, bool centred, const float* x,
                                     const float* code) {
  TrainingConv conv{};
  conv.variant = variant;
  conv.batch = image[0];
  conv.channels = image[3];
  conv.filters = kernel[3];
  conv.centred = centred;
  conv.x = x;
  conv.code = code;
  const int64_t rows = result[0], columns = result[1];
  conv.n = {image[1],
            image[2],
            std::max(image[1] + top, (rows - 1) * stride + kernel[0]),
            std::max(image[2] + left, (columns - 1) * stride + kernel[1]),
            (conv.channels + kWordBits - 1) / kWordBits,
            kernel[0],
            kernel[1],
            rows,
            columns,
            RoundUp(conv.filters, kLanes),
            top,
            left,
            stride};
  return conv;
}

// The kernel, packed for `MultiplyGroup`.
class KernelBits {
 public:
  explicit KernelBits(const TrainingConv& conv)
      : conv_(conv),
        words_(conv.n.kernel_values() * conv.n.out),
        sums_((conv.n.taps_down + 1) * (conv.n.taps_across + 1) * conv.n.out) {}

  const uint32_t* words() const { return words_.data(); }
  const int32_t* corner_sums() const { return sums_.data(); }

  // Packs one tap, and stores its sums for `AddUp`.
  void PackTap(int64_t tap) {
    const Convolution& n = conv_.n;
    const float* code = conv_.code + tap * conv_.channels * conv_.filters;
    uint32_t* words = words_.data() + tap * n.depth * n.out;
    int32_t* sums = SumsAt(tap / n.taps_across + 1, tap % n.taps_across + 1);
    std::fill_n(words, n.depth * n.out, 0);
    std::fill_n(sums, n.out, 0);
    for (int64_t channel = 0; channel < conv_.channels; ++channel, code += conv_.filters) {
      uint32_t* to = words + channel / kWordBits * n.out;
      const int64_t place = channel % kWordBits;
      for (int64_t filter = 0; filter < conv_.filters; ++filter) {
        const uint32_t bit = code[filter] >= 0 ? 1 : 0;
        to[filter] |= bit << place;
        sums[filter] += bit ? 1 : -1;
      }
    }
  }

  // Turns the sums of single taps into sums over all taps above and to the left.
  void AddUp() {
    const Convolution& n = conv_.n;
    std::fill_n(SumsAt(0, 0), (n.taps_across + 1) * n.out, 0);
    for (int64_t row = 1; row <= n.taps_down; ++row) {
      std::fill_n(SumsAt(row, 0), n.out, 0);
      for (int64_t column = 1; column <= n.taps_across; ++column)
        for (int64_t filter = 0; filter < n.out; ++filter)
          SumsAt(row, column)[filter] += SumsAt(row - 1, column)[filter] +
                                         SumsAt(row, column - 1)[filter] -
                                         SumsAt(row - 1, column - 1)[filter];
    }
  }

 private:
  int32_t* SumsAt(int64_t row, int64_t column) {
    return sums_.data() + (row * (conv_.n.taps_across + 1) + column) * conv_.n.out;
  }

  const TrainingConv& conv_;
  std::vector<uint32_t> words_;
  std::vector<int32_t> sums_;
};

// Mean of a sample, and 1 / its deviation, with the epsilon of `rules.standardize`.
inline void Moments(const TrainingConv& conv, const float* x, float* moments) {
  constexpr double kEpsilon = 1e-5;
  const int64_t size = conv.sample();
  if (!conv.centred) {
    moments[0] = 0;
    moments[1] = 1;
    return;
  }
  const auto mean = static_cast<float>(conv.run().sum(size, x) / static_cast<double>(size));
  const double variance = conv.run().squares(size, x, mean) / static_cast<double>(size - 1);
  moments[0] = mean;
  moments[1] = static_cast<float>(1 / std::sqrt(variance + kEpsilon));
}

// Writes the padded image of a sample in words. `bytes` is scratch for a row.
inline void PackImage(const TrainingConv& conv, const float* x, float least, uint8_t* bytes,
                      uint32_t* words) {
  const Convolution& n = conv.n;
  std::fill_n(words, n.padded_size(), 0);
  for (int64_t row = 0; row < n.height; ++row, x += n.width * conv.channels) {
    uint32_t* to = words + (row + n.top) * n.image_row() + n.left * n.depth;
    if (conv.channels % kWordBits == 0) {
      conv.variant->pack(n.width * conv.channels, x, least, to);
    } else if (conv.channels % kLanes == 0) {
      for (int64_t column = 0; column < n.width; ++column)
        conv.variant->pack(conv.channels, x + column * conv.channels, least, to + column * n.depth);
    } else {
      conv.run().to_bytes(n.width * conv.channels, x, least, bytes);
      for (int64_t i = 0; i < n.width * conv.channels; ++i) {
        const int64_t column = i / conv.channels, channel = i % conv.channels;
        const uint32_t bit = bytes[i] != 0;
        to[column * n.depth + channel / kWordBits] |= bit << channel % kWordBits;
      }
    }
  }
}

// Computes the forward direction: either `sums`, with the statistics of each filter, or `y`, the
// sums times `scale`. Unless `before` is empty, its results are the input, and are written to `x`
// first. `moments` is [batch, 2]; `statistics` is [2, filters], mean and variance.
class ConvForward {
 public:
  ConvForward(const TrainingConv& conv, const NormStep& before, float* x, const float* scale,
              float* moments, int16_t* sums, float* statistics, float* y)
      : conv_(conv),
        before_(before),
        x_(x),
        n_(conv.n),
        scale_(scale),
        moments_(moments),
        sums_(sums),
        statistics_(statistics),
        y_(y),
        zeros_(conv.filters) {
    if (sums != nullptr) of_filters_.emplace(conv.run(), conv.batch, n_.results(), conv.filters);
    if (ForwardByEights::Covers(conv.run(), n_, conv.channels, conv.filters))
      by_eights_.emplace(conv.run(), n_, conv.channels, conv.filters, conv.code);
    else
      by_words_.emplace(conv);
  }

  void Run(const Pool& pool) {
    scratch_.resize(Workers(pool));
    std::vector<Phase> phases = {{conv_.taps(), [this](int64_t tap, int64_t) {
                                    if (by_eights_)
                                      by_eights_->Prepare(tap);
                                    else
                                      by_words_->PackTap(tap);
                                  }}};
    if (by_words_) phases.push_back({1, [this](int64_t, int64_t) { by_words_->AddUp(); }});
    phases.push_back(
        {conv_.batch, [this](int64_t index, int64_t worker) { Sample(index, scratch_[worker]); }});
    if (sums_ != nullptr)
      phases.push_back({1, [this](int64_t, int64_t) { of_filters_->Finish(statistics_); }});
    RunPhases(pool, Workers(pool), std::move(phases));
  }

 private:
  struct Scratch {
    std::vector<uint32_t> words;   // the padded image in bits
    std::vector<uint16_t> eights;  // or as ForwardByEights reads it
    std::vector<uint8_t> row;      // of bytes
    std::vector<int16_t> sums;     // of a sample, if they are not kept
  };

  void Sample(int64_t index, Scratch& scratch) {
    const float* x = conv_.x + index * conv_.sample();
    if (!before_.empty()) {
      const int64_t at = index * conv_.sample();
      conv_.run().norm(n_.height * n_.width, conv_.channels, before_.norm, From(before_.y, at),
                       From(before_.shortcut, at), x_ + at);
    }
    Moments(conv_, x, moments_ + 2 * index);
    const float least = moments_[2 * index];
    if (by_eights_)
      ByEights(index, x, least, scratch);
    else
      ByWords(index, x, least, scratch);
    if (sums_ != nullptr) of_filters_->AddSample(index, {nullptr, sums_ + index * conv_.results()});
  }

  void ByEights(int64_t index, const float* x, float least, Scratch& scratch) {
    scratch.eights.resize(by_eights_->image_size(), kNoEight);
    by_eights_->Image(x, least, scratch.eights.data());
    const int64_t at = index * conv_.results();
    if (sums_ != nullptr) return by_eights_->Run(scratch.eights.data(), sums_ + at);
    scratch.sums.resize(conv_.results());
    by_eights_->Run(scratch.eights.data(), scratch.sums.data());
    conv_.run().norm(n_.results(), conv_.filters,
                     {zeros_.data(), scale_, zeros_.data(), nullptr, Activation::kNone},
                     {nullptr, scratch.sums.data()}, nullptr, y_ + at);
  }

  void ByWords(int64_t index, const float* x, float least, Scratch& scratch) {
    scratch.words.resize(n_.padded_size());
    scratch.row.resize(n_.width * conv_.channels);
    PackImage(conv_, x, least, scratch.row.data(), scratch.words.data());
    for (int64_t filter = 0; filter < n_.out; filter += kFilters) {
      const int64_t block = std::min(kFilters, n_.out - filter);
      const int64_t filters = std::min(block, conv_.filters - filter);
      ForGroups(n_, 0, n_.results(), [&](int64_t first, const Group& group) {
        int32_t products[kPixels][kFilters];
        int32_t* to[kPixels];
        for (int64_t p = 0; p < kPixels; ++p) to[p] = products[p];
        MultiplyGroup(*conv_.variant, n_, n_.taps(n_.out), group, conv_.channels, block,
                      scratch.words.data(), by_words_->words() + filter,
                      by_words_->corner_sums() + filter, to);
        const int64_t at = index * conv_.results() + first * conv_.filters + filter;
        if (sums_ != nullptr)
          conv_.run().to_shorts(group.count, filters, products[0], conv_.filters, sums_ + at);
        else
          conv_.run().scale_sums(group.count, filters, products[0], scale_ + filter, conv_.filters,
                                 y_ + at);
      });
    }
  }

  const TrainingConv& conv_;
  const NormStep& before_;
  float* x_;
  const Convolution& n_;
  const float* scale_;
  float* moments_;
  int16_t* sums_;
  float *statistics_, *y_;
  std::vector<float> zeros_;
  std::optional<Statistics> of_filters_;
  std::optional<ForwardByEights> by_eights_;  // one of these two
  std::optional<KernelBits> by_words_;
  std::vector<Scratch> scratch_;  // of each worker
};

inline void RunForward(const Pool& pool, const TrainingConv& conv, const NormStep& before, float* x,
                       const float* scale, float* moments, int16_t* sums, float* statistics,
                       float* y) {
  ConvForward(conv, before, x, scale, moments, sums, statistics, y).Run(pool);
}

// The source of the gradient of y = scale * sums: either `dy`, or `dout` through a norm.
struct ResultGradient {
  const float* dy;  // null if it comes through a norm
  BatchNorm norm;
  BatchNormGradient gradient;
  const float* dout;
  const int16_t* sums;
  const float* shortcut;  // null if there is none
};

struct ConvGradients {
  float* kernel;     // of the kernel in y = conv(signs of x, kernel), or with times_scale
  bool times_scale;  // of that in y = scale * conv(signs of x, kernel)
  float* x;
  float* shortcut;         // receives dz; may be null
  bool shortcut_is_input;  // dz is then added to x
  NormStep before;         // the norm whose results are x, or an empty one
  float* before_sums;      // receives `norm_sums` of that norm, [3, channels]
};

// Computes both gradients of a convolution whose results were scaled by `scale` [filters].
class ConvBackward {
 public:
  ConvBackward(const Pool& pool, const TrainingConv& conv, const float* moments,
               Estimator estimator, const float* scale, const ResultGradient& source,
               const ConvGradients& to)
      : pool_(pool),
        conv_(conv),
        moments_(moments),
        estimator_(estimator),
        scale_(scale),
        source_(source),
        to_(to),
        layout_(conv.n, conv.channels),
        group_(InputByRows::Samples(conv.run(), conv.n, conv.batch, conv.sample())) {
    if (InputByTiles::Covers(*conv.variant, conv.n, conv.channels, conv.filters))
      input_ = std::make_unique<InputByTiles>(*conv.variant, conv.n, conv.channels, conv.filters,
                                              conv.code);
    else if (InputByPixels::Covers(conv.run(), conv.channels))
      input_ = std::make_unique<InputByPixels>(*conv.variant, conv.n, conv.channels, conv.filters,
                                               conv.code);
    else
      input_ = std::make_unique<InputByRows>(conv.run(), conv.n, conv.channels, conv.filters,
                                             group_, conv.code);
    by_tiles_ = KernelByTiles::Covers(*conv.variant, conv.n, conv.channels, conv.filters);
    // If the sums of all filters fit the second cache, one task does everything for its samples.
    constexpr int64_t kCached = 65536;
    const int64_t groups = (conv.batch + group_ - 1) / group_;
    together_ = KernelGradient::SumsSize(conv.n, layout_, conv.filters) <= kCached;
    filters_ = together_
                   ? RoundUp(conv.filters, kTableFilters)
                   : std::min<int64_t>(4 * kTableFilters, RoundUp(conv.filters, kTableFilters));
    ranges_ = (conv.filters + filters_ - 1) / filters_;
    const int64_t blocks = std::min<int64_t>(groups, together_ ? 32 : (15 + ranges_) / ranges_);
    groups_per_block_ = (groups + blocks - 1) / blocks;
    blocks_ = (groups + groups_per_block_ - 1) / groups_per_block_;
  }

  void Run() {
    const int64_t workers = Workers(pool_);
    sums_size_ = KernelGradient::SumsSize(conv_.n, layout_, filters_) +
                 KernelGradient::BorderSize(conv_.n, filters_);
    sums_.emplace(blocks_ * ranges_ * sums_size_);
    places_.emplace((together_ ? workers : Groups()) * PlacesSize());
    widths_.resize(workers);
    for (int64_t worker = 0; worker < workers; ++worker) {
      spaces_.emplace_back(SpaceSize());
      // Everything outside of image and result stays 0.
      std::fill_n(ImageOf(worker), 4 * ImageSize(), 0);
      std::fill_n(TilesScratch(worker), TilesScratchSize(), 0.0f);
    }
    std::vector<Phase> phases;
    phases.push_back({input_->tasks(), [this](int64_t task, int64_t) { input_->Prepare(task); }});
    if (!together_ && !by_tiles_)
      phases.push_back(
          {Groups(), [this](int64_t group, int64_t worker) { PlacesTask(group, worker); }});
    phases.push_back({blocks_ * ranges_, [this](int64_t task, int64_t worker) {
                        KernelTask(task / ranges_, task % ranges_, worker);
                      }});
    if (!together_)
      phases.push_back({blocks_ * groups_per_block_, [this](int64_t group, int64_t worker) {
                          if (Samples(group) == 0) return;
                          float* g = Clear(worker, GradientWidth());
                          LoadGradient(group, 0, conv_.filters, GradientWidth(), g, More(worker));
                          InputTask(group, g, GradientWidth(), worker);
                        }});
    phases.push_back({conv_.taps(), [this](int64_t tap, int64_t) { Combine(tap); }});
    if (!to_.before.empty()) {
      of_before_.emplace(conv_.batch, conv_.channels);
      phases.push_back({1, [this](int64_t, int64_t) { of_before_->Finish(to_.before_sums); }});
    }
    RunPhases(pool_, workers, std::move(phases));
  }

 private:
  // A worker's scratch: the gradient of a group's results, an image in bytes, tables, the input's
  // gradient with its own scratch, and the shortcut's gradient.
  int64_t GradientWidth() const { return RoundUp(conv_.filters, kTableFilters); }
  int64_t GradientSize() const { return group_ * layout_.pixels() * GradientWidth(); }
  int64_t ImageSize() const { return RoundUp(layout_.image, 4 * kLanes) / 4; }
  int64_t PlacesSize() const { return RoundUp(group_ * layout_.places, 4 * kLanes) / 4; }
  int64_t InputSize() const { return RoundUp(group_ * conv_.sample(), kLanes); }
  int64_t MoreSize() const {
    return to_.shortcut_is_input ? RoundUp(group_ * conv_.results(), kLanes) : 0;
  }
  int64_t SpaceSize() const {
    return GradientSize() + ImageSize() + KernelGradient::kMostFours * kFloatsOfTable +
           InputSize() + MoreSize() + RoundUp(input_->ScratchSize(), kLanes) + TilesScratchSize();
  }
  float* Gradient(int64_t worker) { return spaces_[worker].data(); }
  uint8_t* ImageOf(int64_t worker) {
    return reinterpret_cast<uint8_t*>(Gradient(worker) + GradientSize());
  }
  // The indices of all samples are kept if several tasks need each.
  uint8_t* Places(int64_t group, int64_t worker) {
    return reinterpret_cast<uint8_t*>(places_->data() +
                                      (together_ ? worker : group) * PlacesSize());
  }
  float* Tables(int64_t worker) { return Gradient(worker) + GradientSize() + ImageSize(); }
  float* InputOf(int64_t worker) {
    return Tables(worker) + KernelGradient::kMostFours * kFloatsOfTable;
  }
  float* More(int64_t worker) {
    return to_.shortcut_is_input ? InputOf(worker) + InputSize() : nullptr;
  }
  float* Scratch(int64_t worker) { return InputOf(worker) + InputSize() + MoreSize(); }

  int64_t TilesScratchSize() const {
    return by_tiles_ ? KernelByTiles::ScratchSize(conv_.n, conv_.channels, group_) : 0;
  }
  float* TilesScratch(int64_t worker) {
    return Scratch(worker) + RoundUp(input_->ScratchSize(), kLanes);
  }

  // For rows of `width` numbers; everything outside of the results stays 0.
  float* Clear(int64_t worker, int64_t width) {
    if (widths_[worker] != width) std::fill_n(Gradient(worker), GradientSize(), 0.0f);
    widths_[worker] = width;
    return Gradient(worker);
  }

  int64_t First(int64_t group) const { return group * group_; }
  int64_t Samples(int64_t group) const {
    return std::clamp<int64_t>(conv_.batch - First(group), 0, group_);
  }

  // Computes the gradient of y for a group's samples and `count` filters,
  // [samples, layout.pixels(), width]. dz is also written to `more`, or to the caller's array.
  void LoadGradient(int64_t group, int64_t filter, int64_t count, int64_t width, float* g,
                    float* more) {
    const Convolution& n = conv_.n;
    const int64_t across = layout_.fours_across * kFour;
    // Whole samples at once if rows have no extra pixels.
    const int64_t rows = across == n.columns ? 1 : n.rows, pixels = n.results() / rows;
    for (int64_t sample = 0; sample < Samples(group); ++sample) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t pixel = row * pixels;
        const int64_t at =
            (First(group) + sample) * conv_.results() + pixel * conv_.filters + filter;
        float* to = g + (sample * layout_.pixels() + row * across) * width;
        if (source_.dy != nullptr) {
          for (int64_t i = 0; i < pixels; ++i)
            std::copy_n(source_.dy + at + i * conv_.filters, count, to + i * width);
          continue;
        }
        float* dz = nullptr;
        if (more != nullptr)
          dz = more + sample * conv_.results() + pixel * conv_.filters + filter;
        else if (to_.shortcut != nullptr)
          dz = to_.shortcut + at;
        conv_.run().norm_gradient(pixels, count, At(source_.norm, filter),
                                  {source_.gradient.scale + filter, source_.gradient.shift + filter,
                                   source_.gradient.slant + filter},
                                  conv_.filters, source_.dout + at, {nullptr, source_.sums + at},
                                  source_.shortcut == nullptr ? nullptr : source_.shortcut + at,
                                  width, to, dz);
      }
    }
  }

  static BatchNorm At(BatchNorm norm, int64_t channel) {
    norm.centre += channel;
    norm.gain += channel;
    norm.offset += channel;
    if (norm.slope != nullptr) norm.slope += channel;
    return norm;
  }

  // Writes the indices of a group's images.
  void PlacesTask(int64_t group, int64_t worker) {
    const KernelPlaces places(conv_.run(), conv_.n, layout_, Samples(group));
    for (int64_t sample = 0; sample < Samples(group); ++sample) {
      ImageBytes(conv_.run(), conv_.n, layout_, conv_.channels, X(group, sample),
                 Mean(group, sample), ImageOf(worker));
      places.Join(sample, ImageOf(worker), Places(group, worker));
    }
  }

  void KernelTask(int64_t block, int64_t range, int64_t worker) {
    float* sums = Sums(block, range);
    const int64_t border = KernelGradient::SumsSize(conv_.n, layout_, filters_);
    std::fill(sums + border, sums + sums_size_, 0.0f);
    const int64_t filter = range * filters_, count = std::min(filters_, conv_.filters - filter);
    KernelGradient kernel(conv_.run(), conv_.n, layout_, filters_, sums, sums + border,
                          Tables(worker));
    std::optional<KernelByTiles> tiles;
    if (by_tiles_)
      tiles.emplace(*conv_.variant, conv_.n, conv_.channels, count, group_, sums,
                    TilesScratch(worker));
    float* g = Clear(worker, filters_);
    for (int64_t group = block * groups_per_block_;
         group < std::min((block + 1) * groups_per_block_, Groups()); ++group) {
      const int64_t samples = Samples(group);
      LoadGradient(group, filter, count, filters_, g, together_ ? More(worker) : nullptr);
      if (by_tiles_) {
        for (int64_t sample = 0; sample < samples; ++sample)
          tiles->Load(sample, X(group, sample), Mean(group, sample));
        tiles->Add(samples, g, layout_.pixels() * filters_, layout_.fours_across * kFour, filters_);
      } else {
        if (together_) PlacesTask(group, worker);
        kernel.Add(samples, g, Places(group, worker));
      }
      if (together_) InputTask(group, g, filters_, worker);
    }
  }

  void InputTask(int64_t group, const float* g, int64_t width, int64_t worker) {
    const Training& run = conv_.run();
    const int64_t size = conv_.sample();
    input_->Run(Samples(group), g, layout_.pixels() * width, layout_.fours_across * kFour, width,
                scale_, Scratch(worker), InputOf(worker));
    for (int64_t sample = 0; sample < Samples(group); ++sample) {
      const float* x = X(group, sample);
      float* da = InputOf(worker) + sample * size;
      const float* more = More(worker);
      const float mean = Mean(group, sample), scale = moments_[2 * (First(group) + sample) + 1];
      double totals[2];
      run.estimate(size, estimator_, x, mean, scale, da, totals);
      const double shift = conv_.centred ? totals[0] / static_cast<double>(size) : 0;
      const double slant = conv_.centred ? totals[1] / static_cast<double>(size - 1) : 0;
      const int64_t index = First(group) + sample, at = index * size;
      run.standardize_back(size, x, mean, scale, static_cast<float>(shift),
                           static_cast<float>(slant), da,
                           more == nullptr ? nullptr : more + sample * size, to_.x + at);
      if (of_before_)
        AddNormSums(run, size / conv_.channels, conv_.channels, to_.before.norm, to_.x + at,
                    From(to_.before.y, at), From(to_.before.shortcut, at), x,
                    of_before_->Part(index));
    }
  }

  // Computes the kernel's gradient of one tap from all blocks, in order.
  void Combine(int64_t tap) {
    const int64_t border = KernelGradient::SumsSize(conv_.n, layout_, filters_);
    for (int64_t filter = 0; filter < conv_.filters; filter += kTableFilters) {
      const int64_t range = filter / filters_, own = filter % filters_;
      const int64_t count = std::min(kTableFilters, conv_.filters - filter);
      const int64_t first = (own / kTableFilters * conv_.taps() + tap) * layout_.channels;
      double outside[kTableFilters] = {};
      for (int64_t block = 0; block < blocks_; ++block)
        for (int64_t i = 0; i < kTableFilters; ++i)
          outside[i] += Sums(block, range)[border + tap * filters_ + own + i];
      float scale[kTableFilters], gradient[kTableFilters];
      for (int64_t i = 0; i < kTableFilters; ++i)
        scale[i] = to_.times_scale && i < count ? scale_[filter + i] : 1;
      for (int64_t channel = 0; channel < conv_.channels; ++channel) {
        conv_.run().combine(blocks_, ranges_ * sums_size_,
                            Sums(0, range) + (first + channel) * kTableFilters, outside, scale,
                            gradient);
        std::copy_n(gradient, count,
                    to_.kernel + (tap * conv_.channels + channel) * conv_.filters + filter);
      }
    }
  }

  float* Sums(int64_t block, int64_t range) {
    return sums_->data() + (block * ranges_ + range) * sums_size_;
  }

  int64_t Groups() const { return (conv_.batch + group_ - 1) / group_; }
  const float* X(int64_t group, int64_t sample) const {
    return conv_.x + (First(group) + sample) * conv_.sample();
  }
  float Mean(int64_t group, int64_t sample) const { return moments_[2 * (First(group) + sample)]; }

  const Pool& pool_;
  const TrainingConv& conv_;
  const float* moments_;
  Estimator estimator_;
  const float* scale_;
  const ResultGradient& source_;
  const ConvGradients& to_;
  KernelGradientLayout layout_;
  int64_t group_;  // how many samples are handled together
  std::unique_ptr<InputGradient> input_;
  bool by_tiles_;  // whether the kernel's gradient is
  bool together_;
  int64_t filters_, ranges_;  // filters in one task, and ranges of filters
  int64_t groups_per_block_, blocks_;
  int64_t sums_size_;
  std::optional<GradientSums> of_before_;
  std::optional<Memory> sums_;
  std::optional<Memory> places_;
  std::vector<Memory> spaces_;
  std::vector<int64_t> widths_;  // row width of the gradients in a worker's scratch; 0 at first
};

}  // namespace siman

#endif  // SIMAN_TRAINING_CONV_H_
