// Projection of latent kernels, and their code of +-1 by magnitude, as `siman_jax/rules/siman.py`
// defines them. A kernel is [weights, filters]; a filter is a column.

#ifndef SIMAN_WEIGHTS_H_
#define SIMAN_WEIGHTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "select.h"
#include "threads.h"
#include "training.h"
#include "variant.h"

namespace siman {

struct LatentKernel {
  int64_t weights, filters;
  const float* w;
};

// Centres each filter, then clips all magnitudes between two of their percentiles. Percentile i is
// interpolated between the magnitudes of ranks[i] and ranks[2 + i], with weights[i] for the latter.
inline void Project(const Pool& pool, const Training& run, const LatentKernel& kernel,
                    const int32_t* ranks, const float* weights, float* projected) {
  constexpr int64_t kRanks = 4, kPart = 1 << 16, kChunk = 2048;
  const int64_t filters = kernel.filters;
  const int64_t part = std::max<int64_t>(1, kPart / filters);
  const int64_t parts = (kernel.weights + part - 1) / part;
  const int64_t chunk = std::max<int64_t>(1, kChunk / filters);
  // Waking a thread takes as long as computing one part.
  const int64_t workers = parts == 1 ? 1 : Workers(pool);
  std::vector<float> totals(parts * filters), mean(filters);
  std::vector<std::vector<int32_t>> keys(workers);
  KthOfMany select(run, workers, kRanks, ranks);
  float found[kRanks], limits[2];

  auto rows = [&](int64_t index) {
    return std::min(kernel.weights, (index + 1) * part) - index * part;
  };
  auto add_up = [&](int64_t index, int64_t) {
    run.add_up(rows(index), filters, filters, {kernel.w + index * part * filters, nullptr},
               totals.data() + index * filters);
  };
  auto divide = [&](int64_t, int64_t) {
    for (int64_t f = 0; f < filters; ++f) {
      double total = 0;
      for (int64_t index = 0; index < parts; ++index) total += totals[index * filters + f];
      mean[f] = static_cast<float>(total / static_cast<double>(kernel.weights));
    }
  };
  // Calls `body` with the magnitudes of a part, a few rows at a time.
  auto for_keys = [&](int64_t index, int64_t worker, auto&& body) {
    keys[worker].resize(chunk * filters);
    for (int64_t row = 0; row < rows(index); row += chunk) {
      const int64_t count = std::min(chunk, rows(index) - row);
      run.magnitudes(count, filters, filters, kernel.w + (index * part + row) * filters,
                     mean.data(), nullptr, filters, keys[worker].data());
      body(count * filters, keys[worker].data());
    }
  };
  auto count = [&](int64_t index, int64_t worker) {
    for_keys(index, worker,
             [&](int64_t length, const int32_t* own) { select.Count(worker, length, own); });
  };
  auto choose = [&](int64_t, int64_t) { select.Choose(); };
  auto keep = [&](int64_t index, int64_t worker) {
    for_keys(index, worker,
             [&](int64_t length, const int32_t* own) { select.Keep(worker, length, own); });
  };
  auto find = [&](int64_t i, int64_t) { found[i] = select.Find(i); };
  auto interpolate = [&](int64_t, int64_t) {
    for (int i = 0; i < 2; ++i) limits[i] = found[i] * (1 - weights[i]) + found[2 + i] * weights[i];
  };
  auto clip = [&](int64_t index, int64_t) {
    const int64_t at = index * part * filters;
    run.clip(rows(index), filters, kernel.w + at, mean.data(), limits[0], limits[1],
             projected + at);
  };
  RunPhases(pool, workers,
            {{parts, add_up},
             {1, divide},
             {parts, count},
             {1, choose},
             {parts, keep},
             {kRanks, find},
             {1, interpolate},
             {parts, clip}});
}

// Calls body(first, count, worker) for blocks of filters; a row of a block is a few cache lines.
constexpr int64_t kColumns = 4 * kLanes;

template <typename Body>
void ForFilters(const Pool& pool, int64_t filters, Body body) {
  auto block = [&](int64_t index, int64_t worker) {
    const int64_t first = index * kColumns;
    body(first, std::min(kColumns, filters - first), worker);
  };
  RunPhases(pool, Workers(pool), {{(filters + kColumns - 1) / kColumns, block}});
}

// code = +1 where |u| exceeds the filter's `rank`-th smallest, else -1, with u = (w - mean) /
// deviation. Writes mean and deviation to `moments` [2, filters].
inline void MagnitudeCode(const Pool& pool, const Training& run, const LatentKernel& kernel,
                          float epsilon, int64_t rank, float* code, float* moments) {
  const int64_t rows = kernel.weights, filters = kernel.filters;
  std::vector<std::vector<int32_t>> scratch(Workers(pool));
  ForFilters(pool, filters, [&](int64_t first, int64_t count, int64_t worker) {
    const float* w = kernel.w + first;
    float *mean = moments + first, *deviation = mean + filters;
    double totals[kColumns] = {};
    run.sum_columns(rows, count, filters, w, nullptr, totals);
    for (int64_t f = 0; f < count; ++f)
      mean[f] = static_cast<float>(totals[f] / static_cast<double>(rows));
    std::fill_n(totals, kColumns, 0.0);
    run.sum_columns(rows, count, filters, w, mean, totals);
    for (int64_t f = 0; f < count; ++f)
      deviation[f] = static_cast<float>(
          std::sqrt(totals[f] / static_cast<double>(rows - 1) + static_cast<double>(epsilon)));
    int32_t ranks[kLanes], least[kLanes];
    std::fill_n(ranks, kLanes, static_cast<int32_t>(rank));
    std::vector<int32_t>& keys = scratch[worker];
    keys.resize(rows * kLanes);
    for (int64_t f = 0; f < count; f += kLanes) {
      const int64_t own = std::min(kLanes, count - f);
      run.magnitudes(rows, own, filters, w + f, mean + f, deviation + f, kLanes, keys.data());
      run.kth_of_columns(rows, keys.data(), ranks, least);
      run.code_above(rows, own, keys.data(), least, filters, code + first + f);
    }
  });
}

// Computes the gradient of w from that of the code: straight through to |u|, then that of u.
inline void MagnitudeCodeGradient(const Pool& pool, const Training& run, const LatentKernel& kernel,
                                  const float* moments, const float* g, float* dw) {
  const int64_t rows = kernel.weights, filters = kernel.filters;
  ForFilters(pool, filters, [&](int64_t first, int64_t count, int64_t) {
    const float *mean = moments + first, *deviation = mean + filters;
    double sums[kColumns] = {}, by_u[kColumns] = {};
    run.code_sums(rows, count, filters, kernel.w + first, mean, deviation, g + first, sums, by_u);
    float shift[kColumns], slant[kColumns];
    for (int64_t f = 0; f < count; ++f) {
      shift[f] = static_cast<float>(sums[f] / static_cast<double>(rows));
      slant[f] = static_cast<float>(by_u[f] / static_cast<double>(rows - 1));
    }
    run.code_back(rows, count, filters, kernel.w + first, mean, deviation, shift, slant, g + first,
                  dw + first);
  });
}

}  // namespace siman

#endif  // SIMAN_WEIGHTS_H_
