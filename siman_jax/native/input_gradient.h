// The input's gradient of a binary convolution: for every pixel and channel, the sum over taps and
// filters of the kernel, +-1, times the gradient of the result.

#ifndef SIMAN_INPUT_GRADIENT_H_
#define SIMAN_INPUT_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "training.h"

namespace siman {

class InputGradient {
 public:
  virtual ~InputGradient() = default;

  // All of these tasks have to be prepared before `Run`.
  virtual int64_t tasks() const = 0;
  virtual void Prepare(int64_t task) = 0;

  // Floats of scratch that `Run` needs.
  virtual int64_t ScratchSize() const = 0;

  // Computes da [samples, height, width, channels] from g [samples, pixels of a sample, g_step],
  // with rows `across` pixels apart, times `scale` [filters]. From the last filter up to g_step, g
  // is 0.
  virtual void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across,
                   int64_t g_step, const float* scale, float* scratch, float* da) const = 0;
};

// With a stride, pixels whose rows and columns have the same remainder use the same taps. They form
// a class, for which this is a convolution without stride.
struct PixelClass {
  int64_t first_row, first_column;               // first pixel of this class
  int64_t rows, columns;                         // pixels of this class in the image
  std::vector<int64_t> down, right;              // its taps
  std::vector<int64_t> row_steps, column_steps;  // from a pixel to the result that a tap belongs to
  int64_t low, high;                             // the least and the greatest of column_steps and 0
  int64_t slots;  // rows of results from the first to the last that a row of pixels needs

  PixelClass(const Convolution& n, int64_t row, int64_t column)
      : first_row(row),
        first_column(column),
        rows(std::max<int64_t>(0, (n.height - row + n.stride - 1) / n.stride)),
        columns(std::max<int64_t>(0, (n.width - column + n.stride - 1) / n.stride)),
        low(0),
        high(0),
        slots(0) {
    AddTaps(row + n.top, n.taps_down, n.stride, down, row_steps);
    AddTaps(column + n.left, n.taps_across, n.stride, right, column_steps);
    for (const int64_t step : column_steps) {
      low = std::min(low, step);
      high = std::max(high, step);
    }
    if (!row_steps.empty() && !column_steps.empty()) slots = 1 + last_step() - first_step();
  }

  int64_t first_step() const { return *std::min_element(row_steps.begin(), row_steps.end()); }
  int64_t last_step() const { return *std::max_element(row_steps.begin(), row_steps.end()); }

 private:
  static void AddTaps(int64_t place, int64_t count, int64_t stride, std::vector<int64_t>& which,
                      std::vector<int64_t>& steps) {
    for (int64_t tap = 0; tap < count; ++tap) {
      if ((place - tap) % stride != 0) continue;
      which.push_back(tap);
      steps.push_back((place - tap) / stride);
    }
  }
};

}  // namespace siman

#endif  // SIMAN_INPUT_GRADIENT_H_
