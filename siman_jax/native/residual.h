// A residual network of two-shortcut blocks, from images to logits.
//
// A block is two units, each of them conv(bits of x), batch norm, + shortcut(x), PReLU. Activations
// between layers are float [height, width, channels], with channels padded with zeros to a multiple
// of kLanes. A unit without stride overwrites its own input, which is also its shortcut. Kernels
// are stored by blocks of up to kFilters filters, so that inner loops read contiguous memory: the
// block whose first filter is f begins at f times the number of values of a filter.

#ifndef SIMAN_RESIDUAL_H_
#define SIMAN_RESIDUAL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "convolution.h"
#include "memory.h"
#include "stem.h"
#include "tasks.h"
#include "threads.h"
#include "variant.h"

namespace siman {

enum class Shortcut { kIdentity, kZeros, kReal };

struct Unit {
  Convolution conv;      // depth: words per pixel
  int64_t channels, in;  // channels of the input, without and with padding
  int64_t features;      // channels of the output, without padding
  const uint32_t* words;
  const int32_t* corner_sums;
  Norm norm;
  const float* slope;
  Shortcut shortcut;
  const float* shortcut_kernel;  // of a real one, [in, out]
  Norm shortcut_norm;
};

// Means over pixels, batch norm, dense layer.
struct Classifier {
  Norm norm;
  const float* kernel;
  const float* bias;
  int64_t in, out;
};

struct Network {
  const Variant* variant;
  bool centred;  // bits are signs about the sample's mean instead of 0
  Stem stem;
  std::vector<Unit> units;
  Classifier classifier;
};

// Memory for a sample in the network, and for a worker.
class Workspace {
 public:
  explicit Workspace(const Network& network) {
    const Stem& stem = network.stem;
    int64_t activation = stem.rows() * stem.columns() * stem.conv.out, words = 0,
            tasks = stem.rows();
    for (const Unit& unit : network.units) {
      activation = std::max(activation, unit.conv.results() * unit.conv.out);
      words = std::max(words, unit.conv.padded_size());
      tasks = std::max(tasks, TasksOf(unit.conv).count());
    }
    image_ = Add(stem.image_size());
    row_ = Add(stem.row_size());
    pooled_rows_ = Add(3 * stem.columns() * stem.conv.out);
    for (int64_t& start : activations_) start = Add(activation);
    words_ = Add(words);
    sums_ = Add(tasks);
    means_ = Add(network.classifier.in);
    memory_.emplace(size_);
  }

  float* image() const { return memory_->data() + image_; }
  float* row() const { return memory_->data() + row_; }
  float* pooled_rows() const { return memory_->data() + pooled_rows_; }
  float* activation(int which) const { return memory_->data() + activations_[which]; }
  uint32_t* words() const { return reinterpret_cast<uint32_t*>(memory_->data() + words_); }
  float* sums() const { return memory_->data() + sums_; }  // of an activation, one per task
  float* means() const { return memory_->data() + means_; }

 private:
  int64_t Add(int64_t size) {
    const int64_t start = size_;
    size_ += RoundUp(size, kLanes);
    return start;
  }

  int64_t size_ = 0, image_, row_, pooled_rows_, activations_[2], words_, sums_, means_;
  std::optional<Memory> memory_;
};

// One sample in the network. A task computes part of a layer; the tasks of a layer may run at the
// same time.
class Sample {
 public:
  Sample(const Network& network, const Workspace& workspace, const float* image, float* logits)
      : network_(network),
        run_(*network.variant),
        space_(workspace),
        image_(image),
        logits_(logits) {}

  // Returns one phase after another, with the stem in `parts`. `spaces` are the workers' memory.
  std::vector<Phase> Phases(const std::vector<Workspace>& spaces, int64_t parts) const {
    const Stem& stem = network_.stem;
    std::vector<Phase> phases;
    // Adjacent parts of a pooled stem both compute a row of the convolution, so there are few.
    const int64_t stem_rows = stem.rows(), part = (stem_rows + parts - 1) / parts;
    phases.push_back({(stem_rows + part - 1) / part, [=, &spaces](int64_t task, int64_t worker) {
                        const int64_t begin = task * part;
                        StemRows(begin, std::min(stem_rows, begin + part), spaces[worker]);
                      }});
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
    const Classifier& classifier = network_.classifier;
    phases.push_back({classifier.in / kLanes, [=](int64_t block, int64_t) {
                        Means(block * kLanes, space_.activation(current));
                      }});
    phases.push_back({(classifier.out + kFilters - 1) / kFilters,
                      [this](int64_t block, int64_t) { Classify(block * kFilters); }});
    return phases;
  }

 private:
  void StemRows(int64_t begin, int64_t end, const Workspace& own) const {
    const Stem& stem = network_.stem;
    const int64_t length = stem.columns() * stem.conv.out;
    const StemMemory memory{own.image(), own.row(), own.pooled_rows()};
    float* y = space_.activation(0) + begin * length;
    siman::StemRows(run_, stem, image_, begin, end, memory, y);
    for (int64_t row = begin; row < end; ++row, y += length) SumRow(row, y, length);
  }

  void SumRow(int64_t row, const float* x, int64_t length) const {
    float totals[kLanes] = {};
    for (int64_t i = 0; i < length; i += kLanes) run_.add(kLanes, x + i, totals);
    space_.sums()[row] = Total(totals);
  }

  // Writes a row of the padded image of bits. x has `size` numbers, whose sum is kept as `sums`
  // parts.
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
      MultiplyGroup(run_, n, n.taps(filters), group, unit.channels, filters, space_.words(),
                    unit.words + filter * n.kernel_values(), unit.corner_sums + filter, sums);
      run_.finish_unit(group.count, filters, sums, unit.norm.gain + filter,
                       unit.norm.offset + filter, unit.slope + filter, results, totals);
    });
    space_.sums()[task] = Total(totals);
  }

  // Finds the pixel of x that a shortcut uses for each result of a group.
  static void Subsample(const Unit& unit, const Group& group, const float* x,
                        const float* (&seen)[kPixels]) {
    const Convolution& n = unit.conv;
    for (int64_t p = 0; p < kPixels; ++p)
      seen[p] = x + (group.rows[p] * n.width + group.columns[p]) * n.stride * unit.in;
  }

  // The shortcut that adds channels of zeros, half of them before and half after the input's.
  static void PadChannels(const Unit& unit, const Group& group, const float* x, int64_t filter,
                          int64_t filters, float* const* y) {
    const float* seen[kPixels];
    Subsample(unit, group, x, seen);
    const int64_t before = (unit.features - unit.channels) / 2;
    const int64_t begin = std::clamp(before - filter, int64_t{0}, filters);
    const int64_t end = std::clamp(before + unit.channels - filter, int64_t{0}, filters);
    for (int64_t p = 0; p < group.count; ++p) {
      std::fill_n(y[p], begin, 0.0f);
      std::copy_n(seen[p] + filter + begin - before, end - begin, y[p] + begin);
      std::fill(y[p] + end, y[p] + filters, 0.0f);
    }
  }

  // The shortcut by a real 1x1 convolution and its batch norm.
  void Downsample(const Unit& unit, const Group& group, const float* x, int64_t filter,
                  int64_t filters, float* const* y) const {
    const float* seen[kPixels];
    Subsample(unit, group, x, seen);
    run_.multiply_floats({1, unit.in, 0, filters}, seen, unit.shortcut_kernel + filter * unit.in,
                         filters, y);
    for (int64_t p = 0; p < group.count; ++p)
      run_.normalize(1, filters, unit.shortcut_norm.gain + filter,
                     unit.shortcut_norm.offset + filter, kLowest, y[p]);
  }

  // Computes means of kLanes channels, and their batch norm.
  void Means(int64_t channel, const float* x) const {
    const Convolution& n = network_.units.back().conv;
    const Norm& norm = network_.classifier.norm;
    float* means = space_.means() + channel;
    std::fill_n(means, kLanes, 0.0f);
    for (int64_t place = 0; place < n.results(); ++place)
      run_.add(kLanes, x + place * n.out + channel, means);
    for (int64_t i = 0; i < kLanes; ++i) means[i] /= static_cast<float>(n.results());
    run_.normalize(1, kLanes, norm.gain + channel, norm.offset + channel, kLowest, means);
  }

  void Classify(int64_t first) const {
    const Classifier& n = network_.classifier;
    const int64_t classes = std::min(kFilters, n.out - first);
    const float* seen[kPixels];
    float* y[kPixels];
    std::fill_n(seen, kPixels, space_.means());
    std::fill_n(y, kPixels, logits_ + first);
    run_.multiply_floats({1, n.in, 0, classes}, seen, n.kernel + first * n.in, classes, y);
    run_.add(classes, n.bias + first, logits_ + first);
  }

  // For batch norms without a ReLU.
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  const Network& network_;
  const Variant& run_;
  const Workspace& space_;
  const float* image_;
  float* logits_;
};

// Samples run at the same time, each on one thread and with its own memory. If the last ones are
// fewer than threads, each of them runs on all threads.
inline void RunNetwork(const Pool& pool, const Network& network, int64_t batch, int64_t image_size,
                       const float* images, float* logits) {
  const int64_t workers = Workers(pool), alone = batch / workers * workers;
  std::vector<Workspace> spaces;
  for (int64_t worker = 0; worker < workers; ++worker) spaces.emplace_back(network);
  auto sample = [&](int64_t index, int64_t worker) {
    return Sample(network, spaces[worker], images + index * image_size,
                  logits + index * network.classifier.out);
  };
  std::vector<Phase> phases;
  phases.push_back({alone, [&](int64_t index, int64_t worker) {
                      const Sample own = sample(index, worker);
                      for (const Phase& phase : own.Phases(spaces, 1))
                        for (int64_t task = 0; task < phase.tasks; ++task) phase.run(task, worker);
                    }});
  std::vector<Sample> shared;
  shared.reserve(batch - alone);  // phases point to the samples
  for (int64_t index = alone; index < batch; ++index) {
    shared.push_back(sample(index, 0));
    const std::vector<Phase> layers = shared.back().Phases(spaces, 2 * workers);
    phases.insert(phases.end(), layers.begin(), layers.end());
  }
  RunPhases(pool, workers, std::move(phases));
}

}  // namespace siman

#endif  // SIMAN_RESIDUAL_H_
