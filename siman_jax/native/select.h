// Order statistics of floats that are not negative. Their bits, read as integers, order as they do,
// NaN last, so that nothing here can round.

#ifndef SIMAN_SELECT_H_
#define SIMAN_SELECT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "convolution.h"
#include "threads.h"
#include "training.h"
#include "variant.h"

namespace siman {

// The rank-th smallest of `length` keys, counted from 0: bits are fixed from the highest down.
inline int32_t KthSmallest(const Training& run, int64_t length, const int32_t* keys, int64_t rank) {
  int32_t found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const int32_t candidate = found | int32_t{1} << bit;
    if (run.count_below(length, keys, candidate) <= rank) found = candidate;
  }
  return found;
}

// Where x [rows, columns] is larger than the ranks[column]-th smallest of its column; rank -1
// compares with 0.
inline void ExceedsKth(const Pool& pool, const Training& run, int64_t rows, int64_t columns,
                       const float* x, const int32_t* ranks, bool* exceeds) {
  const int64_t workers = Workers(pool), blocks = (columns + kLanes - 1) / kLanes;
  std::vector<std::vector<int32_t>> scratch(workers);
  auto block = [&](int64_t index, int64_t worker) {
    const int64_t first = index * kLanes, count = std::min(kLanes, columns - first);
    std::vector<int32_t>& keys = scratch[worker];
    keys.resize(kLanes * rows);
    run.to_rows(rows, count, x + first, columns, nullptr, reinterpret_cast<float*>(keys.data()),
                rows);
    int32_t least[kLanes] = {};
    for (int64_t c = 0; c < count; ++c)
      if (ranks[first + c] >= 0)
        least[c] = KthSmallest(run, rows, keys.data() + c * rows, ranks[first + c]);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < count; ++c) {
        const int64_t at = row * columns + first + c;
        int32_t key;
        std::memcpy(&key, x + at, sizeof(key));
        exceeds[at] = key > least[c];
      }
    }
  };
  RunPhases(pool, workers, {{blocks, block}});
}

// The ranks-th smallest of all of x: of the numbers that share their highest bits with one of them,
// which are few, the rest is found as above.
inline void KthOfAll(const Pool& pool, const Training& run, int64_t length, const float* x,
                     int64_t count, const int32_t* ranks, float* found) {
  constexpr int kLowBits = 19;
  constexpr int64_t kBins = int64_t{1} << (31 - kLowBits), kPart = 1 << 16;
  const int64_t parts = (length + kPart - 1) / kPart;
  std::vector<std::vector<uint32_t>> counts(parts, std::vector<uint32_t>(kBins));
  std::vector<std::vector<std::vector<int32_t>>> kept(parts);
  std::vector<int64_t> bins(count), below(count);
  std::vector<uint8_t> wanted(kBins);
  auto keys = [&](int64_t part, auto&& body) {
    for (int64_t i = part * kPart; i < std::min(length, (part + 1) * kPart); ++i) {
      int32_t key;
      std::memcpy(&key, x + i, sizeof(key));
      body(key);
    }
  };
  auto add_up = [&](int64_t part, int64_t) {
    keys(part, [&](int32_t key) { ++counts[part][key >> kLowBits]; });
  };
  auto choose = [&](int64_t, int64_t) {
    for (int64_t i = 0; i < count; ++i) {
      int64_t sum = 0;
      for (int64_t bin = 0; bin < kBins; ++bin) {
        int64_t own = 0;
        for (int64_t part = 0; part < parts; ++part) own += counts[part][bin];
        if (sum + own > ranks[i]) {
          bins[i] = bin;
          wanted[bin] = 1;
          below[i] = sum;
          break;
        }
        sum += own;
      }
    }
  };
  auto keep = [&](int64_t part, int64_t) {
    kept[part].resize(count);
    keys(part, [&](int32_t key) {
      if (!wanted[key >> kLowBits]) return;
      for (int64_t i = 0; i < count; ++i)
        if (key >> kLowBits == bins[i]) kept[part][i].push_back(key);
    });
  };
  auto select = [&](int64_t i, int64_t) {
    std::vector<int32_t> all;
    for (const auto& part : kept) all.insert(all.end(), part[i].begin(), part[i].end());
    const int32_t key =
        KthSmallest(run, static_cast<int64_t>(all.size()), all.data(), ranks[i] - below[i]);
    std::memcpy(found + i, &key, sizeof(key));
  };
  RunPhases(pool, Workers(pool), {{parts, add_up}, {1, choose}, {parts, keep}, {count, select}});
}

}  // namespace siman

#endif  // SIMAN_SELECT_H_
