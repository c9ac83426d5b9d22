// Operations that move or combine numbers, as plain loops.

#ifndef SIMAN_PLAIN_H_
#define SIMAN_PLAIN_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "epilogue.h"
#include "plan.h"
#include "program.h"
#include "tasks.h"
#include "variant.h"

namespace siman {

// Numbers of an array that may be a part of another one: where the first is, and the distances
// between neighbours along each axis.
struct View {
  int64_t start;
  Sizes strides;
};

inline View Whole(const Value& value) { return {0, value.strides()}; }

// Axes of size 1 repeated as often as `sizes` has them.
inline View Repeated(const Value& value, const Sizes& sizes) {
  View view = Whole(value);
  for (size_t axis = 0; axis < sizes.size(); ++axis)
    if (value.sizes[axis] == 1 && sizes[axis] != 1) view.strides[axis] = 0;
  return view;
}

// Calls body(places) for all rows along the last axis, with the place of the first number of the
// row in each view. Without axes there is one row.
template <size_t kViews, typename Body>
void ForRows(const Sizes& sizes, const View (&views)[kViews], const Body& body) {
  int64_t places[kViews];
  for (size_t v = 0; v < kViews; ++v) places[v] = views[v].start;
  const size_t outer = sizes.empty() ? 0 : sizes.size() - 1;
  std::vector<int64_t> index(outer);
  for (;;) {
    body(places);
    size_t axis = outer;
    for (; axis > 0; --axis) {
      const size_t own = axis - 1;
      for (size_t v = 0; v < kViews; ++v) places[v] += views[v].strides[own];
      if (++index[own] < sizes[own]) break;
      for (size_t v = 0; v < kViews; ++v) places[v] -= sizes[own] * views[v].strides[own];
      index[own] = 0;
    }
    if (axis == 0) return;
  }
}

inline int64_t Last(const Sizes& sizes) { return sizes.empty() ? 1 : sizes.back(); }
inline int64_t LastStride(const View& view) {
  return view.strides.empty() ? 1 : view.strides.back();
}

// y = x, both with these sizes.
inline void Copy(const Sizes& sizes, const View& from, const float* x, const View& to, float* y) {
  const View views[] = {from, to};
  const int64_t length = Last(sizes), x_step = LastStride(from), y_step = LastStride(to);
  ForRows(sizes, views, [&](const int64_t* at) {
    if (x_step == 1 && y_step == 1) {
      std::copy_n(x + at[0], length, y + at[1]);
    } else {
      for (int64_t i = 0; i < length; ++i) y[at[1] + i * y_step] = x[at[0] + i * x_step];
    }
  });
}

// y = combine(a, b)
template <typename Combine>
void Pairwise(const Sizes& sizes, const View& a_view, const float* a, const View& b_view,
              const float* b, const View& to, float* y, const Combine& combine) {
  const View views[] = {a_view, b_view, to};
  const int64_t length = Last(sizes), a_step = LastStride(a_view), b_step = LastStride(b_view);
  ForRows(sizes, views, [&](const int64_t* at) {
    const float *x1 = a + at[0], *x2 = b + at[1];
    float* result = y + at[2];
    if (a_step == 1 && b_step == 1) {
      for (int64_t i = 0; i < length; ++i) result[i] = combine(x1[i], x2[i]);
    } else {
      for (int64_t i = 0; i < length; ++i) result[i] = combine(x1[i * a_step], x2[i * b_step]);
    }
  });
}

// Sums, or maxima, over axes. Sums are taken in float64, so their order does not matter.
class Reduction {
 public:
  Reduction(const Value& x, const Value& y, const Sizes& axes, bool maximum)
      : sizes_(x.sizes),
        from_(Whole(x)),
        to_{0, Sizes(x.sizes.size(), 0)},
        y_(y),
        maximum_(maximum) {
    // Sums are kept without gaps.
    int64_t step = 1;
    for (size_t axis = sizes_.size(); axis-- > 0;) {
      if (std::count(axes.begin(), axes.end(), axis)) continue;
      to_.strides[axis] = step;
      step *= sizes_[axis];
    }
  }

  int64_t scratch_size() const { return 2 * y_.count() + 1; }  // floats, for float64

  void Run(const float* x, double* sums, float* y) const {
    if (maximum_)
      Combine(x, sums, -std::numeric_limits<double>::infinity(),
              [](double a, double b) { return a < b ? b : a; });
    else
      Combine(x, sums, 0, [](double a, double b) { return a + b; });
    for (int64_t pixel = 0; pixel < y_.pixels; ++pixel, y += y_.lanes)
      for (int64_t c = 0; c < y_.channels; ++c) y[c] = static_cast<float>(*sums++);
  }

 private:
  template <typename Function>
  void Combine(const float* x, double* sums, double first, const Function& function) const {
    std::fill_n(sums, y_.count(), first);
    const View views[] = {from_, to_};
    const int64_t length = Last(sizes_);
    const bool kept = LastStride(to_) == 1;  // the last axis; else its stride is 0
    ForRows(sizes_, views, [&](const int64_t* at) {
      const float* row = x + at[0];
      double* to = sums + at[1];
      if (kept) {
        for (int64_t i = 0; i < length; ++i) to[i] = function(to[i], double{row[i]});
      } else {
        double all = *to;
        for (int64_t i = 0; i < length; ++i) all = function(all, double{row[i]});
        *to = all;
      }
    });
  }

  const Sizes sizes_;
  const View from_;
  View to_;
  const Value y_;
  const bool maximum_;
};

// y has the numbers of x in the same order, but rows of another length.
inline void CopyInOrder(const Value& x, const float* from, const Value& y, float* to) {
  int64_t x_column = 0, y_column = 0;
  for (int64_t left = x.count(); left > 0;) {
    const int64_t length = std::min(x.channels - x_column, y.channels - y_column);
    std::copy_n(from + x_column, length, to + y_column);
    left -= length;
    if ((x_column += length) == x.channels) {
      x_column = 0;
      from += x.lanes;
    }
    if ((y_column += length) == y.channels) {
      y_column = 0;
      to += y.lanes;
    }
  }
}

inline void SoftmaxRow(const float* x, int64_t length, float* y) {
  const float most = *std::max_element(x, x + length);
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += y[i] = std::exp(x[i] - most);
  for (int64_t i = 0; i < length; ++i) y[i] = static_cast<float>(y[i] / sum);
}

// Maxima or sums of windows of [height, width, channels], and the operations fused into them.
class Pooling {
 public:
  Pooling(const Variant& run, const Value& x, const Value& y, const Window& window, bool maximum,
          Epilogue epilogue)
      : run_(run),
        x_(x),
        y_(y),
        window_(window),
        maximum_(maximum),
        epilogue_(std::move(epilogue)) {}

  int64_t rows() const { return y_.sizes[0]; }
  int64_t scratch_size() const { return y_.lanes; }

  // `totals` may be null; else it gets the sum of each row.
  void Run(const Frame& frame, const float* x, float* y, float* totals, int64_t begin,
           int64_t end) const {
    const Window& w = window_;
    const float* more = epilogue_.more(frame);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t top = row * w.stride_down - w.top;
      const int64_t first_row = std::max<int64_t>(0, top),
                    last_row = std::min(x_.sizes[0], top + w.down);
      float sum[kLanes] = {};
      for (int64_t column = 0; column < y_.sizes[1]; ++column) {
        const int64_t left = column * w.stride_across - w.left;
        const int64_t first = std::max<int64_t>(0, left),
                      last = std::min(x_.sizes[1], left + w.across);
        float* own = frame.scratch;
        std::fill_n(own, x_.lanes, maximum_ ? -std::numeric_limits<float>::infinity() : 0.0f);
        for (int64_t r = first_row; r < last_row; ++r) Across(x, r, first, last, own);
        const int64_t place = (row * y_.sizes[1] + column) * y_.lanes;
        const float *sums = own, *added = more + (more == nullptr ? 0 : place);
        float* to = y + place;
        run_.finish_floats(epilogue_.from(0), 1, y_.lanes, &sums,
                           more == nullptr ? nullptr : &added, &to, sum);
      }
      if (totals != nullptr) totals[row] = Total(sum);
    }
  }

 private:
  void Across(const float* x, int64_t row, int64_t first, int64_t last, float* to) const {
    const float* seen = x + (row * x_.sizes[1] + first) * x_.lanes;
    int64_t left = last - first;
    if (!maximum_) {
      for (; left > 0; --left, seen += x_.lanes) run_.add(x_.lanes, seen, to);
      return;
    }
    for (; left > 1; left -= 2, seen += 2 * x_.lanes)
      run_.max3(x_.lanes, seen, seen + x_.lanes, to, to);
    if (left == 1) run_.max3(x_.lanes, seen, seen, to, to);
  }

  const Variant& run_;
  const Value x_, y_;
  const Window window_;
  const bool maximum_;
  const Epilogue epilogue_;
};

}  // namespace siman

#endif  // SIMAN_PLAIN_H_
