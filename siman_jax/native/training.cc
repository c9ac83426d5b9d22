// The functions that Python calls for training, in `siman_jax/native/*.py`, on XLA's CPU backend.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "checks.h"
#include "norms.h"
#include "pooling.h"
#include "real_conv.h"
#include "select.h"
#include "training_conv.h"
#include "variants.h"
#include "weights.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace siman {
namespace {

namespace ffi = xla::ffi;

using Floats4 = ffi::Buffer<ffi::F32, 4>;
using Floats2 = ffi::Buffer<ffi::F32, 2>;
using Floats1 = ffi::Buffer<ffi::F32, 1>;
using Sums = ffi::Buffer<ffi::S16, 4>;
using Ranks = ffi::Buffer<ffi::S32, 1>;
using Places = ffi::Buffer<ffi::U8, 4>;
using Flags = ffi::Buffer<ffi::PRED, 2>;

// A missing array is passed as an empty one.
float* OrNull(ffi::AnyBuffer buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.typed_data<float>();
}

// Sums are kept in 16 bits.
constexpr int64_t kMostTerms = 32767;
// Indices of sums, sixteen for each number of a row, are kept in 16 bits too.
constexpr int64_t kMostRow = 4096;

bool IsActivation(int64_t activation) { return activation >= 0 && activation <= 2; }
bool IsEstimator(int64_t estimator) { return estimator >= 0 && estimator <= 2; }

BatchNorm NormOf(const Floats2& rows, int64_t activation) {
  return NormOf(rows.typed_data(), rows.dimensions()[1], static_cast<Activation>(activation));
}

Numbers NumbersOf(const ffi::AnyBuffer& y) {
  if (y.element_type() == ffi::S16) return {nullptr, y.typed_data<int16_t>()};
  return {y.typed_data<float>(), nullptr};
}

Samples SamplesOf(const ffi::AnyBuffer& y) {
  const auto sizes = y.dimensions();
  return {sizes[0], sizes[1], sizes[2]};
}

// The norm before a convolution. If its inputs y are missing, so are the norm, its shortcut and
// `with`, what there is only with such a norm.
NormStep NormBefore(Check& check, const ffi::AnyBuffer& y, const ffi::AnyBuffer& shortcut,
                    const Floats2& rows, Dimensions x, Dimensions with, int64_t activation) {
  check(IsActivation(activation), "an activation from 0 to 2");
  if (y.element_count() == 0) {
    check(rows.element_count() == 0 && shortcut.element_count() == 0 && !HasElements(with),
          "a norm before with its inputs");
    return {};
  }
  check(y.element_type() == ffi::S16 || y.element_type() == ffi::F32, "sums or floats");
  check(Is(y.dimensions(), {x[0], x[1] * x[2], x[3]}), "inputs of a norm whose results are x");
  check(AreSamplesOrNothing(shortcut, x),
        "a shortcut of the norm before, [samples, pixels, channels]");
  check(Is(rows.dimensions(), {4, x[3]}), "a norm before, [4, channels]");
  if (check.failed()) return {};
  return {NormOf(rows, activation), NumbersOf(y), OrNull(shortcut)};
}

ffi::Error ConvForwardCall(ffi::ThreadPool pool, Floats4 given, Floats4 code, Floats1 scale,
                           ffi::AnyBuffer before_y, ffi::AnyBuffer before_shortcut,
                           Floats2 before_norm, ffi::Result<Floats2> moments,
                           ffi::Result<Sums> sums, ffi::Result<Floats2> statistics,
                           ffi::Result<Floats4> y, ffi::Result<Floats4> made, int64_t variant,
                           int64_t stride, int64_t top, int64_t left, bool centred,
                           int64_t before_activation) {
  const bool scaled = sums->element_count() == 0;
  // Either the input, or what it is made from.
  const bool makes = given.element_count() == 0;
  const Floats4& x = makes ? static_cast<const Floats4&>(*made) : given;
  const auto result = scaled ? y->dimensions() : sums->dimensions();
  const auto kernel = code.dimensions();
  Check check("siman_conv_forward");
  CheckVariant(check, variant);
  CheckConvolution(check, x.dimensions(), kernel, result, stride, top, left);
  check(Is(scale.dimensions(), {kernel[3]}), "a scale for each filter");
  check(Is(moments->dimensions(), {x.dimensions()[0], 2}), "moments [batch, 2]");
  if (!scaled) {
    check(Is(statistics->dimensions(), {2, kernel[3]}), "statistics [2, filters]");
    check(kernel[0] * kernel[1] * kernel[2] <= kMostTerms, "at most 32767 terms in a sum");
  }
  check(makes == (before_y.element_count() != 0), "either an input or a norm before");
  const NormStep before = NormBefore(check, before_y, before_shortcut, before_norm, x.dimensions(),
                                     made->dimensions(), before_activation);
  if (check.failed()) return check.error();
  const TrainingConv conv = MakeTrainingConv(kVariants[variant], x.dimensions().begin(),
                                             code.dimensions().begin(), result.begin() + 1, stride,
                                             top, left, centred, x.typed_data(), code.typed_data());
  RunForward(PoolOf(pool), conv, before, made->typed_data(), scale.typed_data(),
             moments->typed_data(), scaled ? nullptr : sums->typed_data(), statistics->typed_data(),
             y->typed_data());
  return ffi::Error::Success();
}

ffi::Error ConvGradient(ffi::ThreadPool pool, Floats4 x, Floats4 code, Floats1 scale,
                        Floats2 moments, Floats4 g, Sums sums, ffi::AnyBuffer shortcut,
                        Floats2 norm, ffi::AnyBuffer before_y, ffi::AnyBuffer before_shortcut,
                        Floats2 before_norm, ffi::Result<Floats4> kernel, ffi::Result<Floats4> dx,
                        ffi::Result<ffi::AnyBuffer> dshortcut, ffi::Result<Floats2> before_sums,
                        int64_t variant, int64_t stride, int64_t top, int64_t left, bool centred,
                        int64_t estimator, int64_t activation, bool shortcut_is_input,
                        bool times_scale, int64_t before_activation) {
  const auto image = x.dimensions(), taps = code.dimensions(), result = g.dimensions();
  const bool with_norm = sums.element_count() != 0;
  Check check("siman_conv_backward");
  CheckVariant(check, variant);
  CheckConvolution(check, image, taps, result, stride, top, left);
  check(std::max(image[2], result[2]) + taps[1] + left + 4 * kLanes <= kMostRow,
        "rows of at most 4000 pixels");
  check(Is(scale.dimensions(), {taps[3]}), "a scale for each filter");
  check(Is(moments.dimensions(), {image[0], 2}), "moments [batch, 2]");
  check(Same(kernel->dimensions(), taps), "a gradient of the kernel's shape");
  check(Same(dx->dimensions(), image), "a gradient of the input's shape");
  check(IsEstimator(estimator), "an estimator from 0 to 2");
  check(IsActivation(activation), "an activation from 0 to 2");
  if (with_norm) {
    check(Same(sums.dimensions(), result), "sums of the result's shape");
    check(Is(norm.dimensions(), {7, taps[3]}), "a norm [7, filters]");
    // In the same shape as for the forward direction, so that XLA computes it once for both.
    check(AreSamplesOrNothing(shortcut, result), "a shortcut [samples, pixels, filters]");
    check(AreSamplesOrNothing(*dshortcut, result), "a shortcut's gradient of its shape");
  } else {
    check(dshortcut->element_count() == 0, "no shortcut without a norm");
  }
  check(!shortcut_is_input || (with_norm && Same(image, result)),
        "a result of the input's shape if the input is the shortcut");
  const NormStep before = NormBefore(check, before_y, before_shortcut, before_norm, image,
                                     before_sums->dimensions(), before_activation);
  check(before.empty() || Is(before_sums->dimensions(), {3, image[3]}), "sums [3, channels]");
  if (check.failed()) return check.error();
  const TrainingConv conv = MakeTrainingConv(
      kVariants[variant], x.dimensions().begin(), code.dimensions().begin(),
      g.dimensions().begin() + 1, stride, top, left, centred, x.typed_data(), code.typed_data());
  ResultGradient source{};
  if (sums.element_count() == 0) {
    source.dy = g.typed_data();
  } else {
    source.norm = NormOf(norm, activation);
    source.gradient = GradientOf(norm.typed_data(), conv.filters);
    source.dout = g.typed_data();
    source.sums = sums.typed_data();
    source.shortcut = shortcut_is_input ? x.typed_data() : OrNull(shortcut);
  }
  const ConvGradients to{kernel->typed_data(),     times_scale,       dx->typed_data(),
                         OrNull(*dshortcut),       shortcut_is_input, before,
                         before_sums->typed_data()};
  ConvBackward(PoolOf(pool), conv, moments.typed_data(), static_cast<Estimator>(estimator),
               scale.typed_data(), source, to)
      .Run();
  return ffi::Error::Success();
}

ffi::Error RealForward(ffi::ThreadPool pool, Floats4 x, Floats4 kernel, ffi::Result<Floats4> y,
                       int64_t variant, int64_t stride, int64_t top, int64_t left) {
  Check check("siman_real_forward");
  CheckVariant(check, variant);
  CheckConvolution(check, x.dimensions(), kernel.dimensions(), y->dimensions(), stride, top, left);
  check(kernel.dimensions()[3] % kLanes == 0, "a multiple of 16 filters");
  if (check.failed()) return check.error();
  const RealConv conv =
      MakeRealConv(kVariants[variant], x.dimensions().begin(), kernel.dimensions().begin(),
                   y->dimensions().begin() + 1, stride, top, left, x.typed_data());
  RunRealForward(PoolOf(pool), conv, kernel.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error RealKernelGradient(ffi::ThreadPool pool, Floats4 x, Floats4 g,
                              ffi::Result<Floats4> kernel, int64_t variant, int64_t stride,
                              int64_t top, int64_t left) {
  Check check("siman_real_kernel_gradient");
  CheckVariant(check, variant);
  CheckConvolution(check, x.dimensions(), kernel->dimensions(), g.dimensions(), stride, top, left);
  check(kernel->dimensions()[3] % kLanes == 0, "a multiple of 16 filters");
  if (check.failed()) return check.error();
  const RealConv conv =
      MakeRealConv(kVariants[variant], x.dimensions().begin(), kernel->dimensions().begin(),
                   g.dimensions().begin() + 1, stride, top, left, x.typed_data());
  RunRealKernelGradient(PoolOf(pool), conv, g.typed_data(), kernel->typed_data());
  return ffi::Error::Success();
}

// Whether no number has its sign bit set. Their bits are used as indices into a table of counts.
bool NoSigns(const Floats1& x) {
  const float* number = x.typed_data();
  uint32_t all = 0;
  for (int64_t i = 0; i < x.dimensions()[0]; ++i) {
    uint32_t bits;
    std::memcpy(&bits, number + i, sizeof(bits));
    all |= bits;
  }
  return all >> 31 == 0;
}

ffi::Error ExceedsKthCall(ffi::ThreadPool pool, Floats2 x, Ranks ranks, ffi::Result<Flags> exceeds,
                          int64_t variant) {
  Check check("siman_exceeds_kth");
  CheckVariant(check, variant);
  check(HasElements(x.dimensions()), "numbers to choose from");
  check(Is(ranks.dimensions(), {x.dimensions()[1]}), "a rank for each column");
  check(Same(exceeds->dimensions(), x.dimensions()), "a result of the input's shape");
  if (check.failed()) return check.error();
  ExceedsKth(PoolOf(pool), *kVariants[variant]->training, x.dimensions()[0], x.dimensions()[1],
             x.typed_data(), ranks.typed_data(), exceeds->typed_data());
  return ffi::Error::Success();
}

ffi::Error KthOfAllCall(ffi::ThreadPool pool, Floats1 x, Ranks ranks, ffi::Result<Floats1> found,
                        int64_t variant) {
  Check check("siman_kth_of_all");
  CheckVariant(check, variant);
  check(HasElements(x.dimensions()), "numbers to choose from");
  check(Same(found->dimensions(), ranks.dimensions()), "a result for each rank");
  if (!check.failed()) check(NoSigns(x), "numbers that are not negative");
  if (check.failed()) return check.error();
  KthOfAll(PoolOf(pool), *kVariants[variant]->training, x.dimensions()[0], x.typed_data(),
           ranks.dimensions()[0], ranks.typed_data(), found->typed_data());
  return ffi::Error::Success();
}

ffi::Error ProjectCall(ffi::ThreadPool pool, Floats2 w, Ranks ranks, Floats1 weights,
                       ffi::Result<Floats2> projected, int64_t variant) {
  Check check("siman_project");
  CheckVariant(check, variant);
  check(HasElements(w.dimensions()), "a kernel that is not empty");
  check(Is(ranks.dimensions(), {4}), "four ranks");
  check(Is(weights.dimensions(), {2}), "two weights");
  check(Same(projected->dimensions(), w.dimensions()), "a result of the kernel's shape");
  if (check.failed()) return check.error();
  const LatentKernel kernel{w.dimensions()[0], w.dimensions()[1], w.typed_data()};
  Project(PoolOf(pool), *kVariants[variant]->training, kernel, ranks.typed_data(),
          weights.typed_data(), projected->typed_data());
  return ffi::Error::Success();
}

ffi::Error MagnitudeCodeCall(ffi::ThreadPool pool, Floats2 w, ffi::Result<Floats2> code,
                             ffi::Result<Floats2> moments, int64_t variant, int64_t rank,
                             float epsilon) {
  const auto sizes = w.dimensions();
  Check check("siman_magnitude_code");
  CheckVariant(check, variant);
  check(HasElements(sizes), "a kernel that is not empty");
  check(Same(code->dimensions(), sizes), "a code of the kernel's shape");
  check(Is(moments->dimensions(), {2, sizes[1]}), "moments [2, filters]");
  check(rank >= 0 && rank < sizes[0], "a rank below the number of a filter's weights");
  if (check.failed()) return check.error();
  const LatentKernel kernel{w.dimensions()[0], w.dimensions()[1], w.typed_data()};
  MagnitudeCode(PoolOf(pool), *kVariants[variant]->training, kernel, epsilon, rank,
                code->typed_data(), moments->typed_data());
  return ffi::Error::Success();
}

ffi::Error MagnitudeCodeGradientCall(ffi::ThreadPool pool, Floats2 w, Floats2 moments, Floats2 g,
                                     ffi::Result<Floats2> dw, int64_t variant) {
  const auto sizes = w.dimensions();
  Check check("siman_magnitude_code_gradient");
  CheckVariant(check, variant);
  check(HasElements(sizes), "a kernel that is not empty");
  check(Is(moments.dimensions(), {2, sizes[1]}), "moments [2, filters]");
  check(Same(g.dimensions(), sizes), "a gradient of the kernel's shape");
  check(Same(dw->dimensions(), sizes), "a result of the kernel's shape");
  if (check.failed()) return check.error();
  const LatentKernel kernel{w.dimensions()[0], w.dimensions()[1], w.typed_data()};
  MagnitudeCodeGradient(PoolOf(pool), *kVariants[variant]->training, kernel, moments.typed_data(),
                        g.typed_data(), dw->typed_data());
  return ffi::Error::Success();
}

// Checks that y is [samples, pixels, channels], floats or sums.
void CheckSamples(Check& check, const ffi::AnyBuffer& y) {
  check(y.element_type() == ffi::F32 || y.element_type() == ffi::S16, "float32 or int16");
  check(y.dimensions().size() == 3 && HasElements(y.dimensions()),
        "[samples, pixels, channels], none of them 0");
}

// Checks also a norm of that many rows, and its shortcut.
void CheckNorm(Check& check, const ffi::AnyBuffer& y, const ffi::AnyBuffer& shortcut,
               const Floats2& rows, int64_t count, int64_t activation) {
  CheckSamples(check, y);
  check(IsActivation(activation), "an activation from 0 to 2");
  check(AreFloatsOrNothing(shortcut, y.dimensions()), "a shortcut of the input's shape");
  if (check.failed()) return;
  check(Is(rows.dimensions(), {count, y.dimensions()[2]}), "a norm's rows for each channel");
}

ffi::Error NormStatistics(ffi::ThreadPool pool, ffi::AnyBuffer y, ffi::Result<Floats2> statistics,
                          int64_t variant) {
  Check check("siman_norm_statistics");
  CheckVariant(check, variant);
  CheckSamples(check, y);
  if (!check.failed())
    check(Is(statistics->dimensions(), {2, y.dimensions()[2]}), "statistics [2, channels]");
  if (check.failed()) return check.error();
  RunNormStatistics(PoolOf(pool), *kVariants[variant]->training, SamplesOf(y), NumbersOf(y),
                    statistics->typed_data());
  return ffi::Error::Success();
}

ffi::Error NormForward(ffi::ThreadPool pool, ffi::AnyBuffer y, ffi::AnyBuffer shortcut,
                       Floats2 rows, ffi::Result<ffi::AnyBuffer> out, int64_t variant,
                       int64_t activation) {
  Check check("siman_norm_forward");
  CheckVariant(check, variant);
  CheckNorm(check, y, shortcut, rows, 4, activation);
  check(AreFloats(*out, y.dimensions()), "a result of the input's shape");
  if (check.failed()) return check.error();
  RunNormForward(PoolOf(pool), *kVariants[variant]->training, SamplesOf(y),
                 NormOf(rows, activation), NumbersOf(y), OrNull(shortcut),
                 out->typed_data<float>());
  return ffi::Error::Success();
}

ffi::Error NormSums(ffi::ThreadPool pool, ffi::AnyBuffer dout, ffi::AnyBuffer y,
                    ffi::AnyBuffer shortcut, Floats2 rows, ffi::Result<Floats2> sums,
                    int64_t variant, int64_t activation) {
  Check check("siman_norm_sums");
  CheckVariant(check, variant);
  CheckNorm(check, y, shortcut, rows, 4, activation);
  check(AreFloats(dout, y.dimensions()), "a gradient of the input's shape");
  if (!check.failed()) check(Is(sums->dimensions(), {3, y.dimensions()[2]}), "sums [3, channels]");
  if (check.failed()) return check.error();
  RunNormSums(PoolOf(pool), *kVariants[variant]->training, SamplesOf(y), NormOf(rows, activation),
              dout.typed_data<float>(), NumbersOf(y), OrNull(shortcut), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error NormBackward(ffi::ThreadPool pool, ffi::AnyBuffer dout, ffi::AnyBuffer y,
                        ffi::AnyBuffer shortcut, Floats2 rows, ffi::Result<ffi::AnyBuffer> dy,
                        ffi::Result<ffi::AnyBuffer> dshortcut, int64_t variant,
                        int64_t activation) {
  Check check("siman_norm_backward");
  CheckVariant(check, variant);
  CheckNorm(check, y, shortcut, rows, 7, activation);
  check(AreFloats(dout, y.dimensions()), "a gradient of the input's shape");
  check(AreFloats(*dy, y.dimensions()), "a result of the input's shape");
  check(AreFloatsOrNothing(*dshortcut, y.dimensions()), "a shortcut's gradient of its shape");
  if (check.failed()) return check.error();
  const Samples all = SamplesOf(y);
  RunNormBackward(PoolOf(pool), *kVariants[variant]->training, all, NormOf(rows, activation),
                  GradientOf(rows.typed_data(), all.channels), dout.typed_data<float>(),
                  NumbersOf(y), OrNull(shortcut), dy->typed_data<float>(), OrNull(*dshortcut));
  return ffi::Error::Success();
}

MaxPool MaxPoolOf(const Floats4& image, const Floats4& result, int64_t down, int64_t across,
                  int64_t row_stride, int64_t column_stride, int64_t top, int64_t left) {
  const auto x = image.dimensions(), y = result.dimensions();
  return {x[0], x[1], x[2], x[3], y[1], y[2], down, across, row_stride, column_stride, top, left};
}

void CheckMaxPool(Check& check, int64_t variant, const Floats4& image, const Floats4& result,
                  const Places& which, int64_t down, int64_t across, int64_t row_stride,
                  int64_t column_stride, int64_t top, int64_t left) {
  const auto x = image.dimensions(), y = result.dimensions();
  CheckVariant(check, variant);
  check(HasElements(x) && HasElements(y), "arrays that are not empty");
  check(y[0] == x[0] && y[3] == x[3], "results with the input's samples and channels");
  check(Same(which.dimensions(), y), "places of the result's shape");
  check(down >= 1 && across >= 1 && down <= MaxPool::kNoPlace && across <= MaxPool::kNoPlace &&
            down * across <= MaxPool::kNoPlace,
        "windows of 1 to 255 pixels");
  CheckAxis(check, x[1], top, down, row_stride, y[1]);
  CheckAxis(check, x[2], left, across, column_stride, y[2]);
}

ffi::Error MaxPoolForward(ffi::ThreadPool pool, Floats4 x, ffi::Result<Floats4> y,
                          ffi::Result<Places> which, int64_t variant, int64_t down, int64_t across,
                          int64_t row_stride, int64_t column_stride, int64_t top, int64_t left) {
  Check check("siman_max_pool");
  CheckMaxPool(check, variant, x, *y, *which, down, across, row_stride, column_stride, top, left);
  if (check.failed()) return check.error();
  RunMaxPool(PoolOf(pool), *kVariants[variant]->training,
             MaxPoolOf(x, *y, down, across, row_stride, column_stride, top, left), x.typed_data(),
             y->typed_data(), which->typed_data());
  return ffi::Error::Success();
}

ffi::Error MaxPoolGradient(ffi::ThreadPool pool, Floats4 g, Places which, ffi::Result<Floats4> dx,
                           int64_t variant, int64_t down, int64_t across, int64_t row_stride,
                           int64_t column_stride, int64_t top, int64_t left) {
  Check check("siman_max_pool_gradient");
  CheckMaxPool(check, variant, *dx, g, which, down, across, row_stride, column_stride, top, left);
  if (check.failed()) return check.error();
  RunMaxPoolGradient(PoolOf(pool), *kVariants[variant]->training,
                     MaxPoolOf(*dx, g, down, across, row_stride, column_stride, top, left),
                     g.typed_data(), which.typed_data(), dx->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace siman

extern "C" {

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_conv_forward, siman::ConvForwardCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats1>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Ret<siman::Floats2>()
                                  .Ret<siman::Sums>()
                                  .Ret<siman::Floats2>()
                                  .Ret<siman::Floats4>()
                                  .Ret<siman::Floats4>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<bool>("centred")
                                  .Attr<int64_t>("before_activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_conv_backward, siman::ConvGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats1>()
                                  .Arg<siman::Floats2>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Sums>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Ret<siman::Floats4>()
                                  .Ret<siman::Floats4>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<bool>("centred")
                                  .Attr<int64_t>("estimator")
                                  .Attr<int64_t>("activation")
                                  .Attr<bool>("shortcut_is_input")
                                  .Attr<bool>("times_scale")
                                  .Attr<int64_t>("before_activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_real_forward, siman::RealForward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats4>()
                                  .Ret<siman::Floats4>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_real_kernel_gradient, siman::RealKernelGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Floats4>()
                                  .Ret<siman::Floats4>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_exceeds_kth, siman::ExceedsKthCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats2>()
                                  .Arg<siman::Ranks>()
                                  .Ret<siman::Flags>()
                                  .Attr<int64_t>("variant"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_kth_of_all, siman::KthOfAllCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats1>()
                                  .Arg<siman::Ranks>()
                                  .Ret<siman::Floats1>()
                                  .Attr<int64_t>("variant"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_project, siman::ProjectCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats2>()
                                  .Arg<siman::Ranks>()
                                  .Arg<siman::Floats1>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_magnitude_code, siman::MagnitudeCodeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats2>()
                                  .Ret<siman::Floats2>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("rank")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_magnitude_code_gradient, siman::MagnitudeCodeGradientCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats2>()
                                  .Arg<siman::Floats2>()
                                  .Arg<siman::Floats2>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_norm_statistics, siman::NormStatistics,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_norm_forward, siman::NormForward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_norm_sums, siman::NormSums,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Ret<siman::Floats2>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_norm_backward, siman::NormBackward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<siman::Floats2>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_max_pool, siman::MaxPoolForward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Ret<siman::Floats4>()
                                  .Ret<siman::Places>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("down")
                                  .Attr<int64_t>("across")
                                  .Attr<int64_t>("row_stride")
                                  .Attr<int64_t>("column_stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_max_pool_gradient, siman::MaxPoolGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Floats4>()
                                  .Arg<siman::Places>()
                                  .Ret<siman::Floats4>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("down")
                                  .Attr<int64_t>("across")
                                  .Attr<int64_t>("row_stride")
                                  .Attr<int64_t>("column_stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
}
