// Order statistics of floats that are not negative. Their bits, read as integers, have the same
// order, with NaN last, so nothing is rounded.

#ifndef SIMAN_SELECT_H_
#define SIMAN_SELECT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"
#include "training.h"
#include "variant.h"

namespace siman {

// Tells where x [rows, columns] is larger than the ranks[column]-th smallest of its column; rank -1
// compares with 0.
inline void ExceedsKth(const Pool& pool, const Training& run, int64_t rows, int64_t columns,
                       const float* x, const int32_t* ranks, bool* exceeds) {
  const int64_t workers = Workers(pool), blocks = (columns + kLanes - 1) / kLanes;
  std::vector<std::vector<int32_t>> scratch(workers);
  auto block = [&](int64_t index, int64_t worker) {
    const int64_t first = index * kLanes, count = std::min(kLanes, columns - first);
    std::vector<int32_t>& keys = scratch[worker];
    keys.assign(rows * kLanes, 0);
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(keys.data() + row * kLanes, x + row * columns + first, count * sizeof(float));
    int32_t own[kLanes] = {}, least[kLanes];
    std::copy_n(ranks + first, count, own);
    run.kth_of_columns(rows, keys.data(), own, least);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < count; ++c)
        exceeds[row * columns + first + c] = keys[row * kLanes + c] > least[c];
  };
  RunPhases(pool, workers, {{blocks, block}});
}

// A few order statistics of many keys. Workers pass all keys twice, in any order and in parallel.
// The first pass counts keys by their highest bits. The second pass keeps only those keys whose
// highest bits equal those of a key that is looked for.
class KthOfMany {
 public:
  // `ranks` [count] count from 0 and must outlive this object.
  KthOfMany(const Training& run, int64_t workers, int64_t count, const int32_t* ranks)
      : run_(run),
        ranks_(ranks),
        counts_(workers, std::vector<uint32_t>(kCounters * kBins)),
        kept_(workers, std::vector<std::vector<int32_t>>(count)),
        bins_(count),
        below_(count),
        wanted_(kBins) {}

  void Count(int64_t worker, int64_t length, const int32_t* keys) {
    // Adjacent keys often share a bin; with one counter, each addition would wait for the last one.
    uint32_t* counts = counts_[worker].data();
    int64_t i = 0;
    for (; i + kCounters <= length; i += kCounters)
      for (int64_t n = 0; n < kCounters; ++n) ++counts[n * kBins + (keys[i + n] >> kLowBits)];
    for (; i < length; ++i) ++counts[keys[i] >> kLowBits];
  }

  // Called between both passes.
  void Choose() {
    const auto count = static_cast<int64_t>(bins_.size());
    std::vector<int64_t> totals(kBins);
    for (const auto& own : counts_)
      for (int64_t i = 0; i < kCounters * kBins; ++i) totals[i % kBins] += own[i];
    for (int64_t i = 0; i < count; ++i) {
      int64_t bin = 0, sum = 0;
      while (bin < kBins - 1 && sum + totals[bin] <= ranks_[i]) sum += totals[bin++];
      bins_[i] = static_cast<int32_t>(bin);
      below_[i] = sum;
      wanted_[bin] = 1;
    }
  }

  void Keep(int64_t worker, int64_t length, const int32_t* keys) {
    for (int64_t n = 0; n < length; ++n) {
      const int32_t bin = keys[n] >> kLowBits;
      if (!wanted_[bin]) continue;
      for (size_t i = 0; i < bins_.size(); ++i)
        if (bin == bins_[i]) kept_[worker][i].push_back(keys[n]);
    }
  }

  // Returns the ranks[i]-th smallest key. Its bits are fixed from the highest down.
  float Find(int64_t i) const {
    std::vector<int32_t> keys;
    for (const auto& own : kept_) keys.insert(keys.end(), own[i].begin(), own[i].end());
    int32_t found = 0;
    for (int bit = 30; bit >= 0; --bit) {
      const int32_t candidate = found | int32_t{1} << bit;
      const int64_t below =
          run_.count_below(static_cast<int64_t>(keys.size()), keys.data(), candidate);
      if (below <= ranks_[i] - below_[i]) found = candidate;
    }
    float number;
    std::memcpy(&number, &found, sizeof(number));
    return number;
  }

 private:
  static constexpr int kLowBits = 19;
  static constexpr int64_t kBins = int64_t{1} << (31 - kLowBits), kCounters = 2;

  const Training& run_;
  const int32_t* ranks_;
  std::vector<std::vector<uint32_t>> counts_;            // by worker: [kCounters, kBins]
  std::vector<std::vector<std::vector<int32_t>>> kept_;  // by worker and rank
  std::vector<int32_t> bins_;                            // bins of the keys looked for
  std::vector<int64_t> below_;                           // how many keys have lower bins
  std::vector<uint8_t> wanted_;                          // whether a bin is one of `bins_`
};

// Finds the numbers of the given ranks among all of x.
inline void KthOfAll(const Pool& pool, const Training& run, int64_t length, const float* x,
                     int64_t count, const int32_t* ranks, float* found) {
  constexpr int64_t kPart = 1 << 16, kChunk = 2048;
  const int64_t parts = (length + kPart - 1) / kPart, workers = Workers(pool);
  KthOfMany select(run, workers, count, ranks);
  auto for_keys = [&](int64_t part, auto&& body) {
    int32_t keys[kChunk];
    for (int64_t at = part * kPart; at < std::min(length, (part + 1) * kPart); at += kChunk) {
      const int64_t own = std::min(kChunk, length - at);
      std::memcpy(keys, x + at, own * sizeof(float));
      body(own, keys);
    }
  };
  auto count_keys = [&](int64_t part, int64_t worker) {
    for_keys(part, [&](int64_t own, const int32_t* keys) { select.Count(worker, own, keys); });
  };
  auto choose = [&](int64_t, int64_t) { select.Choose(); };
  auto keep = [&](int64_t part, int64_t worker) {
    for_keys(part, [&](int64_t own, const int32_t* keys) { select.Keep(worker, own, keys); });
  };
  auto find = [&](int64_t i, int64_t) { found[i] = select.Find(i); };
  RunPhases(pool, workers, {{parts, count_keys}, {1, choose}, {parts, keep}, {count, find}});
}

}  // namespace siman

#endif  // SIMAN_SELECT_H_
