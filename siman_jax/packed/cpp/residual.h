// A residual network of two-shortcut blocks, from an image to the means of its last channels.
//
// A block is two units, each conv(bits of x), batch norm, + shortcut(x), PReLU. Between layers an
// activation is float [height, width, channels], channels padded with zeros to a multiple of
// kLanes, and a unit without stride writes over its own input, which is its shortcut too.

#ifndef SIMAN_RESIDUAL_H_
#define SIMAN_RESIDUAL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "convolution.h"
#include "threads.h"
#include "variant.h"

namespace siman {

// Gain and offset of a folded batch norm.
struct Norm {
  const float *gain, *offset;
};

// Convolution, batch norm, ReLU, and perhaps 3x3 maxima with stride 2.
struct Stem {
  Convolution conv;  // depth: channels of the image
  const float* kernel;
  Norm norm;
  bool pooled;

  static int64_t Pooled(int64_t size) { return (size + 1) / 2; }
  int64_t rows() const { return pooled ? Pooled(conv.rows) : conv.rows; }
  int64_t columns() const { return pooled ? Pooled(conv.columns) : conv.columns; }
};

enum class Shortcut { kIdentity, kZeros, kReal };

struct Unit {
  Convolution conv;      // depth: words of a pixel
  int64_t channels, in;  // of the input, without and with its own padding
  int64_t features;      // of the output, without padding
  const uint32_t* words;
  const int32_t* corner_sums;
  Norm norm;
  const float* slope;
  Shortcut shortcut;
  const float* shortcut_kernel;  // of a real one, [in, out]
  Norm shortcut_norm;
};

struct Network {
  const Variant* variant;
  bool centred;  // bits are signs about the sample's mean, not about 0
  Stem stem;
  std::vector<Unit> units;

  int64_t out() const { return units.back().conv.out; }
};

// Tasks are the same whatever the number of threads, and so are the sums that they leave.
class Tasks {
 public:
  // Of `results` with `values` to multiply for each, for a block of filters: some microseconds.
  Tasks(int64_t results, int64_t out, int64_t values)
      : results_(results),
        part_(std::max(4 * kPixels, 4096 / values / kPixels * kPixels)),
        out_(out),
        blocks_((out + kFilters - 1) / kFilters) {}
  int64_t count() const { return (results_ + part_ - 1) / part_ * blocks_; }
  int64_t begin(int64_t task) const { return task / blocks_ * part_; }
  int64_t end(int64_t task) const { return std::min(results_, begin(task) + part_); }
  int64_t filter(int64_t task) const { return task % blocks_ * kFilters; }
  int64_t filters(int64_t task) const { return std::min(kFilters, out_ - filter(task)); }

 private:
  int64_t results_, part_, out_, blocks_;
};

inline Tasks TasksOf(const Convolution& n) {
  return {n.results(), n.out, n.taps_down * n.taps_across * n.depth};
}

// What one sample needs in memory on its way through the network.
class Workspace {
 public:
  explicit Workspace(const Network& network) {
    const Stem& stem = network.stem;
    const int64_t row = stem.conv.columns * stem.conv.out;
    int64_t activation = stem.rows() * stem.columns() * stem.conv.out, words = 0,
            tasks = stem.rows();
    int64_t other = stem.pooled ? stem.conv.rows * stem.columns() * stem.conv.out : 0;
    for (const Unit& unit : network.units) {
      words = std::max(words, unit.conv.padded_size());
      tasks = std::max(tasks, TasksOf(unit.conv).count());
      other = std::max(other, unit.conv.results() * unit.conv.out);
    }
    activation = std::max(activation, other);
    image_ = Add(stem.conv.padded_size());
    row_ = Add(row);
    activations_[0] = Add(activation);
    activations_[1] = Add(other);
    words_ = Add(words);
    sums_ = Add(tasks);
    // Not in a vector, which would fill it with zeros first.
    memory_.reset(static_cast<float*>(::operator new(size_ * sizeof(float), kAlignment)));
  }

  float* image() const { return memory_.get() + image_; }
  float* row() const { return memory_.get() + row_; }  // of the stem's convolution
  float* activation(int which) const { return memory_.get() + activations_[which]; }
  uint32_t* words() const { return reinterpret_cast<uint32_t*>(memory_.get() + words_); }
  float* sums() const { return memory_.get() + sums_; }  // of an activation, by tasks

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(float* memory) const { ::operator delete(memory, kAlignment); }
  };

  int64_t Add(int64_t size) {
    const int64_t start = size_;
    size_ += RoundUp(size, kLanes);
    return start;
  }

  int64_t size_ = 0, image_, row_, activations_[2], words_, sums_;
  std::unique_ptr<float, Delete> memory_;
};

// One sample on its way. Functions of a task do a part of a layer, and may be called for different
// tasks of a layer at the same time.
class Sample {
 public:
  Sample(const Network& network, const Workspace& workspace, const float* image, float* means)
      : network_(network), run_(*network.variant), space_(workspace), image_(image),
        means_(means) {}

  // The layers in turn. `spaces` are those of the workers, for what no other task may touch.
  std::vector<Phase> Phases(const std::vector<Workspace>& spaces) const {
    const Stem& stem = network_.stem;
    std::vector<Phase> phases;
    phases.push_back({stem.conv.padded_height, [this](int64_t row, int64_t) { PadRow(row); }});
    phases.push_back({stem.conv.rows, [this, &spaces](int64_t row, int64_t worker) {
                        StemRow(row, spaces[worker].row());
                      }});
    if (stem.pooled)
      phases.push_back({stem.rows(), [this](int64_t row, int64_t) { PoolRow(row); }});
    int64_t sums = stem.rows(), size = stem.rows() * stem.columns() * network_.units[0].channels;
    int current = 0;
    for (const Unit& unit : network_.units) {
      const Tasks tasks = TasksOf(unit.conv);
      const int next = unit.shortcut == Shortcut::kIdentity ? current : 1 - current;
      phases.push_back({unit.conv.padded_height, [=, &unit](int64_t row, int64_t) {
                          PackRow(unit, row, space_.activation(current), sums, size);
                        }});
      phases.push_back({tasks.count(), [=, &unit](int64_t task, int64_t) {
                          Convolve(unit, tasks, task, space_.activation(current),
                                   space_.activation(next));
                        }});
      sums = tasks.count();
      size = unit.conv.results() * unit.features;
      current = next;
    }
    phases.push_back({network_.out() / kLanes, [=](int64_t block, int64_t) {
                        Means(block * kLanes, space_.activation(current));
                      }});
    return phases;
  }

 private:
  void PadRow(int64_t index) const {
    const Convolution& n = network_.stem.conv;
    const int64_t row = index - n.top;
    float* to = space_.image() + index * n.image_row();
    if (row < 0 || row >= n.height) {
      std::fill_n(to, n.image_row(), 0.0f);
      return;
    }
    to = std::fill_n(to, n.left * n.depth, 0.0f);
    to = std::copy_n(image_ + row * n.width * n.depth, n.width * n.depth, to);
    std::fill_n(to, (n.padded_width - n.left - n.width) * n.depth, 0.0f);
  }

  // A row of the stem's convolution, and where it is pooled, the maxima across.
  void StemRow(int64_t row, float* wide) const {
    const Stem& stem = network_.stem;
    const Convolution& n = stem.conv;
    const int64_t out = n.out;
    float* result = stem.pooled ? wide : space_.activation(0) + row * n.columns * out;
    for (int64_t filter = 0; filter < out; filter += kFilters) {
      ForGroups(n, row * n.columns, (row + 1) * n.columns, [&](int64_t, const Group& group) {
        const float* seen[kPixels];
        float* y[kPixels];
        FirstTaps(n, group, static_cast<const float*>(space_.image()), seen);
        for (int64_t p = 0; p < kPixels; ++p) y[p] = result + group.columns[p] * out + filter;
        run_.multiply_floats(n.taps(), seen, stem.kernel + filter,
                             std::min(kFilters, out - filter), y);
      });
    }
    run_.normalize(n.columns, out, stem.norm.gain, stem.norm.offset, 0, result);
    if (!stem.pooled) {
      SumRow(row, result, n.columns * out);
      return;
    }
    float* to = space_.activation(1) + row * stem.columns() * out;
    for (int64_t x = 0; x < stem.columns(); ++x, to += out)
      run_.max3(out, wide + std::max<int64_t>(0, 2 * x - 1) * out, wide + 2 * x * out,
                wide + std::min(n.columns - 1, 2 * x + 1) * out, to);
  }

  // The maxima down.
  void PoolRow(int64_t row) const {
    const Stem& stem = network_.stem;
    const int64_t length = stem.columns() * stem.conv.out;
    const float* from = space_.activation(1);
    float* to = space_.activation(0) + row * length;
    run_.max3(length, from + std::max<int64_t>(0, 2 * row - 1) * length, from + 2 * row * length,
              from + std::min(stem.conv.rows - 1, 2 * row + 1) * length, to);
    SumRow(row, to, length);
  }

  void SumRow(int64_t row, const float* x, int64_t length) const {
    float totals[kLanes] = {};
    for (int64_t i = 0; i < length; i += kLanes) run_.add(kLanes, x + i, totals);
    space_.sums()[row] = Total(totals);
  }

  static float Total(const float* totals) {
    double sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += totals[i];
    return static_cast<float>(sum);
  }

  // A row of the padded image of bits. `sums` parts add up to the sum of `size` numbers of x.
  void PackRow(const Unit& unit, int64_t index, const float* x, int64_t sums, int64_t size) const {
    const Convolution& n = unit.conv;
    const int64_t row = index - n.top;
    uint32_t* to = space_.words() + index * n.image_row();
    std::fill_n(to, n.image_row(), 0);
    if (row < 0 || row >= n.height) return;
    float least = 0;
    if (network_.centred) {
      double sum = 0;
      for (int64_t i = 0; i < sums; ++i) sum += space_.sums()[i];
      least = static_cast<float>(sum / static_cast<double>(size));
    }
    x += row * n.width * unit.in;
    to += n.left * n.depth;
    if (unit.channels % kWordBits == 0) {
      run_.pack(n.width * unit.in, x, least, to);
      return;
    }
    const uint32_t last = (uint32_t{1} << unit.channels % kWordBits) - 1;
    for (int64_t i = 0; i < n.width; ++i, x += unit.in, to += n.depth) {
      run_.pack(unit.in, x, least, to);
      to[n.depth - 1] &= last;
    }
  }

  void Convolve(const Unit& unit, const Tasks& tasks, int64_t task, const float* x,
                float* y) const {
    const Convolution& n = unit.conv;
    const int64_t filter = tasks.filter(task), filters = tasks.filters(task);
    float totals[kLanes] = {};
    ForGroups(n, tasks.begin(task), tasks.end(task), [&](int64_t first, const Group& group) {
      float* results[kPixels];
      for (int64_t p = 0; p < kPixels; ++p)
        results[p] = y + (first + std::min(p, group.count - 1)) * n.out + filter;
      if (unit.shortcut == Shortcut::kZeros) PadChannels(unit, group, x, filter, filters, results);
      if (unit.shortcut == Shortcut::kReal) Downsample(unit, group, x, filter, filters, results);
      int32_t products[kPixels][kFilters];
      int32_t* sums[kPixels];
      for (int64_t p = 0; p < kPixels; ++p) sums[p] = products[p];
      MultiplyGroup(run_, n, group, unit.channels, filter, filters, space_.words(), unit.words,
                    unit.corner_sums, sums);
      for (int64_t p = 0; p < group.count; ++p)
        run_.finish_unit(filters, sums[p], unit.norm.gain + filter, unit.norm.offset + filter,
                         unit.slope + filter, results[p], totals);
    });
    space_.sums()[task] = Total(totals);
  }

  // What a shortcut meets of x for each result of a group.
  static void Subsample(const Unit& unit, const Group& group, const float* x,
                        const float* (&seen)[kPixels]) {
    const Convolution& n = unit.conv;
    for (int64_t p = 0; p < kPixels; ++p)
      seen[p] = x + (group.rows[p] * n.width + group.columns[p]) * n.stride * unit.in;
  }

  // The shortcut that has as many channels of zeros before the input's as behind them.
  static void PadChannels(const Unit& unit, const Group& group, const float* x, int64_t filter,
                          int64_t filters, float* const* y) {
    const float* seen[kPixels];
    Subsample(unit, group, x, seen);
    const int64_t before = (unit.features - unit.channels) / 2;
    const int64_t begin = std::clamp(before - filter, int64_t{0}, filters);
    const int64_t end = std::clamp(before + unit.channels - filter, int64_t{0}, filters);
    for (int64_t p = 0; p < group.count; ++p) {
      std::fill_n(y[p], begin, 0.0f);
      if (begin < end) std::copy(seen[p] + filter + begin - before, seen[p] + filter + end - before,
                                 y[p] + begin);
      std::fill(y[p] + std::max(begin, end), y[p] + filters, 0.0f);
    }
  }

  // The shortcut that is a real 1x1 convolution and its batch norm.
  void Downsample(const Unit& unit, const Group& group, const float* x, int64_t filter,
                  int64_t filters, float* const* y) const {
    const float* seen[kPixels];
    Subsample(unit, group, x, seen);
    run_.multiply_floats({1, unit.in, 0, unit.conv.out}, seen, unit.shortcut_kernel + filter,
                         filters, y);
    for (int64_t p = 0; p < group.count; ++p)
      run_.normalize(1, filters, unit.shortcut_norm.gain + filter,
                     unit.shortcut_norm.offset + filter, -std::numeric_limits<float>::infinity(),
                     y[p]);
  }

  void Means(int64_t channel, const float* x) const {
    const Convolution& n = network_.units.back().conv;
    float sums[kLanes] = {};
    for (int64_t place = 0; place < n.results(); ++place)
      run_.add(kLanes, x + place * n.out + channel, sums);
    for (int64_t i = 0; i < kLanes; ++i)
      means_[channel + i] = sums[i] / static_cast<float>(n.results());
  }

  const Network& network_;
  const Variant& run_;
  const Workspace& space_;
  const float* image_;
  float* means_;
};

// Samples go through the network next to each other, each on one thread and in a memory of its own;
// of the last ones, which are fewer than threads, each on all of them.
inline void RunNetwork(xla::ffi::ThreadPool& pool, const Network& network, int64_t batch,
                       int64_t image_size, const float* images, float* means) {
  const int64_t workers = Workers(pool), alone = batch / workers * workers;
  std::vector<Workspace> spaces;
  for (int64_t worker = 0; worker < workers; ++worker) spaces.emplace_back(network);
  auto sample = [&](int64_t index, int64_t worker) {
    return Sample(network, spaces[worker], images + index * image_size,
                  means + index * network.out());
  };
  std::vector<Phase> phases;
  phases.push_back({alone, [&](int64_t index, int64_t worker) {
                      const Sample own = sample(index, worker);
                      for (const Phase& phase : own.Phases(spaces))
                        for (int64_t task = 0; task < phase.tasks; ++task) phase.run(task, worker);
                    }});
  std::vector<Sample> shared;
  shared.reserve(batch - alone);  // phases point to the samples
  for (int64_t index = alone; index < batch; ++index) {
    shared.push_back(sample(index, 0));
    for (Phase& phase : shared.back().Phases(spaces)) phases.push_back(std::move(phase));
  }
  RunPhases(pool, workers, std::move(phases));
}

}  // namespace siman

#endif  // SIMAN_RESIDUAL_H_
