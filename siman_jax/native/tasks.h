// How a convolution is split into tasks.

#ifndef SIMAN_TASKS_H_
#define SIMAN_TASKS_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "variant.h"

namespace siman {

// A split into tasks. It does not depend on the number of threads, so neither do the sums that
// tasks leave.
class Tasks {
 public:
  // For `results` that need `values` multiplications each. A task is a few microseconds of work.
  Tasks(int64_t results, int64_t out, int64_t values)
      : results_(results), out_(out), blocks_((out + kFilters - 1) / kFilters) {
    const int64_t parts = results * values / 4096 + 1;
    part_ = RoundUp((results + parts - 1) / parts, kPixels);
  }
  int64_t count() const { return (results_ + part_ - 1) / part_ * blocks_; }
  int64_t begin(int64_t task) const { return task / blocks_ * part_; }
  int64_t end(int64_t task) const { return std::min(results_, begin(task) + part_); }
  int64_t filter(int64_t task) const { return task % blocks_ * kFilters; }
  int64_t filters(int64_t task) const { return std::min(kFilters, out_ - filter(task)); }

 private:
  int64_t results_, out_, blocks_, part_;
};

// The sum of kLanes totals.
inline float Total(const float* totals) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += totals[i];
  return static_cast<float>(sum);
}

}  // namespace siman

#endif  // SIMAN_TASKS_H_
