// Checks of the arguments. Arrays with sizes that do not fit each other would be read and written
// out of bounds, so every handler checks them before it computes.

#ifndef SIMAN_CHECKS_H_
#define SIMAN_CHECKS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>

#include "convolution.h"
#include "variants.h"
#include "xla/ffi/api/ffi.h"

namespace siman {

using Dimensions = xla::ffi::Span<const int64_t>;

// Remembers the first condition that does not hold.
class Check {
 public:
  explicit Check(const char* function) : function_(function) {}

  void operator()(bool holds, const char* expected) {
    if (!holds && expected_ == nullptr) expected_ = expected;
  }
  bool failed() const { return expected_ != nullptr; }
  xla::ffi::Error error() const {
    return xla::ffi::Error::InvalidArgument(std::string(function_) + ": expected " + expected_);
  }

 private:
  const char* function_;
  const char* expected_ = nullptr;
};

inline bool Is(Dimensions sizes, std::initializer_list<int64_t> expected) {
  return std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end());
}

inline bool Same(Dimensions a, Dimensions b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

inline bool HasElements(Dimensions sizes) {
  return std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size > 0; });
}

// Whether x holds floats and has those sizes.
inline bool AreFloats(const xla::ffi::AnyBuffer& x, Dimensions sizes) {
  return x.element_type() == xla::ffi::F32 && Same(x.dimensions(), sizes);
}

// Whether x is that, or empty.
inline bool AreFloatsOrNothing(const xla::ffi::AnyBuffer& x, Dimensions sizes) {
  return x.element_count() == 0 || AreFloats(x, sizes);
}

// Whether x is [samples, pixels, channels] for `sizes` [samples, rows, columns, channels], or
// empty.
inline bool AreSamplesOrNothing(const xla::ffi::AnyBuffer& x, Dimensions sizes) {
  const auto own = x.dimensions();
  return x.element_count() == 0 ||
         (x.element_type() == xla::ffi::F32 && Is(own, {sizes[0], sizes[1] * sizes[2], sizes[3]}));
}

inline void CheckVariant(Check& check, int64_t index) {
  bool found = false;
  for (int64_t i = 0; kVariants[i] != nullptr; ++i)
    found = found || (i == index && kVariants[i]->supported());
  check(found, "a variant that this processor can run");
}

// No convolution is larger; these limits bound the memory that wrong arguments can ask for.
constexpr int64_t kMostStep = int64_t{1} << 20;
constexpr double kMostPadded = double{1LL << 31};

// Checks one axis: `size` pixels, `before` zeros of padding, and numbers of taps and results.
inline void CheckAxis(Check& check, int64_t size, int64_t before, int64_t taps, int64_t stride,
                      int64_t results) {
  check(stride >= 1 && stride <= kMostStep, "a stride from 1 to 2^20");
  check(before >= 0 && before <= kMostStep, "padding from 0 to 2^20");
  if (check.failed()) return;
  const int64_t room = size + before - taps;
  check(room < 0 || results >= room / stride + 1, "as many results as taps have places");
}

// x [batch, height, width, channels], kernel [taps down, taps across, channels, filters],
// y [batch, rows, columns, filters].
inline void CheckConvolution(Check& check, Dimensions x, Dimensions kernel, Dimensions y,
                             int64_t stride, int64_t top, int64_t left) {
  check(HasElements(x) && HasElements(kernel) && HasElements(y), "arrays that are not empty");
  check(kernel[2] == x[3], "a kernel with the input's channels");
  check(y[0] == x[0], "as many results as samples");
  check(y[3] == kernel[3], "results with the kernel's filters");
  CheckAxis(check, x[1], top, kernel[0], stride, y[1]);
  CheckAxis(check, x[2], left, kernel[1], stride, y[2]);
  if (check.failed()) return;
  const auto down = static_cast<double>(std::max(x[1] + top, (y[1] - 1) * stride + kernel[0]));
  const auto across = static_cast<double>(std::max(x[2] + left, (y[2] - 1) * stride + kernel[1]));
  check(down * across * static_cast<double>(x[3]) <= kMostPadded,
        "a padded image of at most 2^31 values");
}

}  // namespace siman

#endif  // SIMAN_CHECKS_H_
