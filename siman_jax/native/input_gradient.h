// The input's gradient of a binary convolution: for every pixel and channel the sum over taps and
// filters of the kernel, +-1, times the gradient of the result there.

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

  // What has to be done before `Run`, in as many tasks.
  virtual int64_t tasks() const = 0;
  virtual void Prepare(int64_t task) = 0;

  // Floats of the scratch that `Run` takes.
  virtual int64_t ScratchSize() const = 0;

  // da [samples, height, width, channels] from g [samples, pixels of a sample, g_step], whose rows
  // are `across` pixels apart; g counts times `scale` [filters]. Between the last filter and g_step
  // g is 0.
  virtual void Run(int64_t samples, const float* g, int64_t g_sample, int64_t across,
                   int64_t g_step, const float* scale, float* scratch, float* da) const = 0;
};

// With a stride, pixels whose rows and columns leave the same rest meet the same taps: a class. To
// them it is a convolution without stride, of the taps they meet.
struct PixelClass {
  int64_t first_row, first_column;               // of the image
  int64_t rows, columns;                         // pixels of this class in the image
  std::vector<int64_t> down, right;              // its taps
  std::vector<int64_t> row_steps, column_steps;  // from a pixel to the result they meet there
  int64_t low, high;  // the least and the greatest of column_steps, but at most and at least 0
  int64_t slots;      // rows of results that a row of pixels meets, with those between them

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
