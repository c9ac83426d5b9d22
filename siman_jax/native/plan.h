// What a network does for one image: stages of tasks, and where in memory each result is.
//
// A result is floats [pixels, channels], with the channels of a pixel followed by as many unused
// floats as make them a multiple of kLanes; the image alone has none of these. Nothing depends on
// what unused floats are. Buffers are parts of one piece of memory, and share it if they are not
// needed at the same time.

#ifndef SIMAN_PLAN_H_
#define SIMAN_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "convolution.h"
#include "program.h"
#include "variant.h"

namespace siman {

// Arrays that vectors of any instruction set read without crossing cache lines.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  AlignedAllocator() = default;
  template <typename Other>
  explicit AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }
  void deallocate(T* data, size_t) { ::operator delete(data, kAlignment); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};
template <typename T>
using Aligned = std::vector<T, AlignedAllocator<T>>;

// Memory for a result, needed from step `first` to step `last`.
struct Buffer {
  int64_t size, first, last, offset = 0;
};

// Where numbers are: in a buffer, among the weights, or, with neither, in the image.
struct Place {
  Buffer* buffer = nullptr;
  const float* weights = nullptr;
};

// An image that is computed, on a thread.
struct Frame {
  const float* image;
  float* memory;   // for all buffers
  float* scratch;  // of the thread
  float* result;

  const float* at(const Place& place) const {
    if (place.weights != nullptr) return place.weights;
    return place.buffer == nullptr ? image : memory + place.buffer->offset;
  }
  float* at(const Buffer* buffer) const { return memory + buffer->offset; }
  template <typename T>
  T* as(const Buffer* buffer) const {
    return reinterpret_cast<T*>(at(buffer));
  }
};

// Tasks that may run at the same time, after those of the stage before. A call runs tasks from
// `begin` to `end`. Those of a product use a part of its weights each, so a thread that computes
// several images runs a task for all of them before the next one.
struct Stage {
  int64_t tasks;
  std::function<void(const Frame&, int64_t begin, int64_t end)> run;
  bool joined = false;  // tasks share work instead, so they are better left together
};

struct Value {
  Sizes sizes;
  int64_t pixels, channels, lanes;
  Place place;
  // Partial sums of all its numbers, if something needs their mean.
  Buffer* sums = nullptr;
  int64_t sum_count = 0;

  explicit Value(const Sizes& all) : sizes(all), pixels(1), channels(all.empty() ? 1 : all.back()) {
    for (size_t axis = 0; axis + 1 < all.size(); ++axis) pixels *= all[axis];
    lanes = RoundUp(channels, kLanes);
  }
  int64_t count() const { return pixels * channels; }
  int64_t memory() const { return pixels * lanes; }
  // Distances in memory between neighbours along each axis.
  Sizes strides() const {
    Sizes all(sizes.size(), 1);
    int64_t step = lanes;
    for (size_t axis = sizes.size(); axis-- > 1;) {
      all[axis - 1] = step;
      step *= sizes[axis - 1];
    }
    return all;
  }
};

// Unused parts of memory, which grows if none of them is large enough.
class Gaps {
 public:
  int64_t end() const { return end_; }

  int64_t Take(int64_t size) {
    auto found = sizes_.lower_bound({size, 0});
    if (found == sizes_.end()) {
      // The last gap grows, if it ends where memory ends.
      const bool last = !gaps_.empty() && Last()->first + Last()->second == end_;
      const int64_t start = last ? Last()->first : end_;
      end_ = start + size;
      if (last) Remove(Last());
      return start;
    }
    const auto [length, start] = *found;
    Remove(gaps_.find(start));
    if (length > size) Insert(start + size, length - size);
    return start;
  }

  void Add(int64_t start, int64_t size) {
    auto after = gaps_.lower_bound(start);
    if (after != gaps_.end() && after->first == start + size) {
      size += after->second;
      after = Remove(after);
    }
    if (after != gaps_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == start) {
        start = before->first;
        size += before->second;
        Remove(before);
      }
    }
    Insert(start, size);
  }

 private:
  using Iterator = std::map<int64_t, int64_t>::iterator;

  Iterator Last() { return std::prev(gaps_.end()); }
  void Insert(int64_t start, int64_t size) {
    gaps_[start] = size;
    sizes_.insert({size, start});
  }
  Iterator Remove(Iterator gap) {
    sizes_.erase({gap->second, gap->first});
    return gaps_.erase(gap);
  }

  std::map<int64_t, int64_t> gaps_;              // sizes by start
  std::set<std::pair<int64_t, int64_t>> sizes_;  // and start
  int64_t end_ = 0;
};

struct Plan {
  const Variant* variant;
  std::deque<Buffer> buffers;            // a deque, since places point to them
  std::deque<Aligned<float>> constants;  // likewise
  std::vector<Stage> stages;
  int64_t memory = 0, scratch = 0;  // floats: for an image, and for a thread
  int64_t together = 1;             // how many images a thread computes at a time
  int64_t image_size = 0, result_size = 0;

  static constexpr int64_t kMostTogether = 4;
  int64_t thread_memory() const { return scratch + together * memory; }

  // Gives every buffer an offset, at which no buffer is that is needed at the same time.
  void PlaceBuffers() {
    constexpr size_t kFew = 1024;
    if (buffers.size() <= kFew)
      PlaceBySize();
    else
      PlaceByTime();
  }

 private:
  // The largest buffers first, which leaves few gaps, but looks at all pairs of buffers.
  void PlaceBySize() {
    std::vector<Buffer*> order;
    for (Buffer& buffer : buffers) order.push_back(&buffer);
    std::stable_sort(order.begin(), order.end(),
                     [](const Buffer* a, const Buffer* b) { return a->size > b->size; });
    std::vector<const Buffer*> placed;  // by offset
    for (Buffer* own : order) {
      for (const Buffer* other : placed) {
        if (other->last < own->first || own->last < other->first) continue;
        if (own->offset + own->size <= other->offset) break;
        own->offset = std::max(own->offset, other->offset + other->size);
      }
      placed.insert(
          std::upper_bound(placed.begin(), placed.end(), own,
                           [](const Buffer* a, const Buffer* b) { return a->offset < b->offset; }),
          own);
      memory = std::max(memory, own->offset + own->size);
    }
  }

  // In the order in which they are needed, each in the smallest gap that is left.
  void PlaceByTime() {
    std::vector<Buffer*> begin, end;
    for (Buffer& buffer : buffers) begin.push_back(&buffer);
    end = begin;
    std::stable_sort(begin.begin(), begin.end(),
                     [](const Buffer* a, const Buffer* b) { return a->first < b->first; });
    std::stable_sort(end.begin(), end.end(),
                     [](const Buffer* a, const Buffer* b) { return a->last < b->last; });
    Gaps gaps;
    auto over = end.begin();
    for (Buffer* own : begin) {
      for (; (*over)->last < own->first; ++over) gaps.Add((*over)->offset, (*over)->size);
      own->offset = gaps.Take(own->size);
    }
    memory = gaps.end();
  }
};

}  // namespace siman

#endif  // SIMAN_PLAN_H_
