// Max pooling for training.

#ifndef SIMAN_POOLING_H_
#define SIMAN_POOLING_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "threads.h"
#include "training.h"

namespace siman {

// Images [batch, height, width, channels], results [batch, rows, columns, channels]. Windows have
// at most kNoPlace pixels; those outside of the image are ignored.
struct MaxPool {
  int64_t batch, height, width, channels, rows, columns;
  int64_t down, across;  // pixels of a window
  int64_t row_stride, column_stride, top, left;

  static constexpr uint8_t kNoPlace = 255;  // of a window without pixels

  int64_t image() const { return height * width * channels; }
  int64_t results() const { return rows * columns * channels; }
};

// Computes y, and `which` pixel of its window each maximum is, counted row by row; the first one if
// several are equal. NaN counts as larger than any number.
inline void RunMaxPool(const Pool& pool, const Training& run, const MaxPool& n, const float* x,
                       float* y, uint8_t* which) {
  auto sample = [&](int64_t index, int64_t) {
    const float* image = x + index * n.image();
    float* to = y + index * n.results();
    uint8_t* to_which = which + index * n.results();
    const float* pixels[MaxPool::kNoPlace];
    uint8_t places[MaxPool::kNoPlace];
    for (int64_t row = 0; row < n.rows; ++row) {
      for (int64_t column = 0; column < n.columns; ++column) {
        int64_t count = 0;
        for (int64_t down = 0; down < n.down; ++down) {
          const int64_t i = row * n.row_stride - n.top + down;
          if (i < 0 || i >= n.height) continue;
          for (int64_t right = 0; right < n.across; ++right) {
            const int64_t j = column * n.column_stride - n.left + right;
            if (j < 0 || j >= n.width) continue;
            pixels[count] = image + (i * n.width + j) * n.channels;
            places[count++] = static_cast<uint8_t>(down * n.across + right);
          }
        }
        if (count > 0) {
          run.max_of(n.channels, count, pixels, places, to, to_which);
        } else {
          std::fill_n(to, n.channels, -std::numeric_limits<float>::infinity());
          std::fill_n(to_which, n.channels, MaxPool::kNoPlace);
        }
        to += n.channels;
        to_which += n.channels;
      }
    }
  };
  RunPhases(pool, Workers(pool), {{n.batch, sample}});
}

// Computes dx from the gradient g of y and the places from `RunMaxPool`.
inline void RunMaxPoolGradient(const Pool& pool, const Training& run, const MaxPool& n,
                               const float* g, const uint8_t* which, float* dx) {
  // The windows that a pixel is in, along one side of the image.
  struct Windows {
    int64_t begin, end;
  };
  auto windows = [](int64_t pixel, int64_t before, int64_t size, int64_t stride, int64_t count) {
    const int64_t at = pixel + before, late = at - size + stride;
    const int64_t begin = std::clamp<int64_t>(late <= 0 ? 0 : late / stride, 0, count);
    return Windows{begin, std::clamp<int64_t>(at / stride + 1, begin, count)};
  };
  auto sample = [&](int64_t index, int64_t) {
    float* to = dx + index * n.image();
    const float* gradients[MaxPool::kNoPlace];
    const uint8_t* chosen[MaxPool::kNoPlace];
    uint8_t places[MaxPool::kNoPlace];
    for (int64_t i = 0; i < n.height; ++i) {
      const Windows down = windows(i, n.top, n.down, n.row_stride, n.rows);
      for (int64_t j = 0; j < n.width; ++j, to += n.channels) {
        const Windows right = windows(j, n.left, n.across, n.column_stride, n.columns);
        int64_t count = 0;
        for (int64_t row = down.begin; row < down.end; ++row) {
          for (int64_t column = right.begin; column < right.end; ++column) {
            const int64_t at = index * n.results() + (row * n.columns + column) * n.channels;
            gradients[count] = g + at;
            chosen[count] = which + at;
            places[count++] = static_cast<uint8_t>((i + n.top - row * n.row_stride) * n.across + j +
                                                   n.left - column * n.column_stride);
          }
        }
        run.add_chosen(n.channels, count, gradients, chosen, places, to);
      }
    }
  };
  RunPhases(pool, Workers(pool), {{n.batch, sample}});
}

}  // namespace siman

#endif  // SIMAN_POOLING_H_
