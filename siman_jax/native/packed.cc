// The functions that Python calls for packed networks, on XLA's CPU backend.

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "binary_conv.h"
#include "checks.h"
#include "network.h"
#include "residual.h"
#include "variants.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace siman {
namespace {

namespace ffi = xla::ffi;

using Bits = ffi::Buffer<ffi::PRED, 4>;
using Words = ffi::Buffer<ffi::U32, 4>;
using CornerSums = ffi::Buffer<ffi::S32, 3>;
using Products = ffi::Buffer<ffi::S32, 4>;
using Images = ffi::Buffer<ffi::F32, 4>;
using Logits = ffi::Buffer<ffi::F32, 2>;
using Integers = ffi::Span<const int64_t>;

ffi::Error BinaryConv(ffi::ThreadPool pool, Bits bits, Words kernel, CornerSums corner_sums,
                      ffi::Result<Products> y, ffi::Result<Words> padded, int64_t variant,
                      int64_t stride, int64_t top, int64_t left) {
  const auto image = bits.dimensions(), words = padded->dimensions(), taps = kernel.dimensions(),
             to = y->dimensions();
  Check check("siman_binary_conv");
  CheckVariant(check, variant);
  check(image[1] > 0 && image[2] > 0 && image[3] > 0 && HasElements(taps) && to[1] > 0 && to[2] > 0,
        "images and a kernel that are not empty");
  check(taps[2] == (image[3] + kWordBits - 1) / kWordBits, "words for the input's channels");
  check(taps[3] % kLanes == 0, "a multiple of 16 filters");
  check(to[0] == image[0] && to[3] == taps[3], "results with the samples and the filters");
  check(Is(corner_sums.dimensions(), {taps[0] + 1, taps[1] + 1, taps[3]}),
        "corner sums [taps down + 1, taps across + 1, filters]");
  CheckAxis(check, image[1], top, taps[0], stride, to[1]);
  CheckAxis(check, image[2], left, taps[1], stride, to[2]);
  if (!check.failed())
    check(words[0] == image[0] && words[3] == taps[2] && words[1] >= image[1] + top &&
              words[2] >= image[2] + left && words[1] >= (to[1] - 1) * stride + taps[0] &&
              words[2] >= (to[2] - 1) * stride + taps[1],
          "a padded image that covers all taps");
  if (check.failed()) return check.error();
  const Convolution n{image[1], image[2], words[1], words[2], words[3], taps[0], taps[1],
                      to[1],    to[2],    to[3],    top,      left,     stride};
  RunBinaryConv(PoolOf(pool), *kVariants[variant], n, image[0], image[3],
                reinterpret_cast<const uint8_t*>(bits.typed_data()), kernel.typed_data(),
                corner_sums.typed_data(), padded->typed_data(), y->typed_data());
  return ffi::Error::Success();
}

// Reads the weights in the order that `MakeNetwork` expects.
class Given {
 public:
  Given(Check& check, const ffi::RemainingArgs& buffers) : check_(check), buffers_(buffers) {}

  // Returns the next weight, which must have that type and those sizes.
  void Next(ffi::DataType type, std::initializer_list<int64_t> sizes, const char* expected) {
    if (check_.failed()) return;
    const auto buffer = buffers_.get<ffi::AnyBuffer>(next_++);
    check_(buffer.has_value(), "more weights");
    if (check_.failed()) return;
    check_(buffer->element_type() == type && Is(buffer->dimensions(), sizes), expected);
  }
  void Norm(int64_t width, const char* expected) {
    Next(ffi::F32, {width}, expected);
    Next(ffi::F32, {width}, expected);
  }
  // Taps of a unit's kernel, from its corner sums; 0 if there are none.
  int64_t Taps() const {
    const auto sums = buffers_.get<ffi::AnyBuffer>(next_ + 1);
    return sums.has_value() && sums->dimensions().size() == 3 ? sums->dimensions()[0] - 1 : 0;
  }
  void End() { check_(next_ == buffers_.size(), "no more weights than the network has"); }

 private:
  Check& check_;
  const ffi::RemainingArgs& buffers_;
  size_t next_ = 0;
};

void CheckNetwork(Check& check, Dimensions images, const ffi::RemainingArgs& buffers,
                  Dimensions logits, bool pooled, bool real_shortcuts, Integers strides,
                  Integers channels) {
  constexpr int64_t kMostTaps = 255, kMostChannels = int64_t{1} << 20;
  check(images[1] > 0 && images[2] > 0 && logits[1] > 0, "images and logits that are not empty");
  check(strides.size() >= 2 && channels.size() == strides.size() + 1,
        "strides of the stem and at least one unit, and channels of the images and each of them");
  for (const int64_t stride : strides)
    check(stride >= 1 && stride <= kMostStep, "strides from 1 to 2^20");
  for (const int64_t count : channels)
    check(count >= 1 && count <= kMostChannels, "channels from 1 to 2^20");
  if (check.failed()) return;
  check(images[3] == channels.begin()[0], "images with the network's channels");
  check(logits[0] == images[0] && logits[1] % kLanes == 0, "logits of each image, in whole lanes");
  check(!pooled || strides.begin()[0] == 2, "a stride of 2 for a pooled stem");

  Given given(check, buffers);
  int64_t width = RoundUp(channels.begin()[1], kLanes);
  const int64_t stem = pooled ? 7 * Stem::kAllTaps : 3 * 3;
  given.Next(ffi::F32, {stem * channels.begin()[0] * width}, "a stem's kernel in blocks");
  given.Norm(width, "gain and offset of the stem");
  for (size_t i = 1; i < strides.size(); ++i) {
    const int64_t in = channels.begin()[i], features = channels.begin()[i + 1];
    const int64_t out = RoundUp(features, kLanes), taps = given.Taps();
    check(taps >= 1 && taps <= kMostTaps, "corner sums [taps + 1, taps + 1, filters]");
    given.Next(ffi::U32, {taps * taps * ((in + kWordBits - 1) / kWordBits) * out},
               "a unit's words in blocks");
    given.Next(ffi::S32, {taps + 1, taps + 1, out}, "corner sums [taps + 1, taps + 1, filters]");
    given.Norm(out, "gain and offset of a unit");
    given.Next(ffi::F32, {out}, "slopes of a unit");
    if (strides.begin()[i] != 1 || in != features) {
      check(real_shortcuts || features >= in,
            "at least as many channels after a shortcut with zeros");
      if (real_shortcuts) {
        given.Next(ffi::F32, {width * out}, "a shortcut's kernel in blocks");
        given.Norm(out, "gain and offset of a shortcut");
      }
    }
    width = out;
  }
  given.Norm(width, "gain and offset of the last norm");
  given.Next(ffi::F32, {width * logits[1]}, "a classifier's kernel in blocks");
  given.Next(ffi::F32, {logits[1]}, "a bias for each logit");
  given.End();
}

ffi::Error ResidualLogits(ffi::ThreadPool pool, Images images, ffi::RemainingArgs buffers,
                          ffi::Result<Logits> logits, int64_t variant, bool centred, bool pooled,
                          bool real_shortcuts, Integers strides, Integers channels) {
  const auto sizes = images.dimensions();
  Check check("siman_residual_logits");
  CheckVariant(check, variant);
  CheckNetwork(check, sizes, buffers, logits->dimensions(), pooled, real_shortcuts, strides,
               channels);
  if (check.failed()) return check.error();
  std::vector<Weight> weights;
  for (size_t i = 0; i < buffers.size(); ++i) {
    const auto buffer = *buffers.get<ffi::AnyBuffer>(i);
    weights.push_back({buffer.untyped_data(), buffer.dimensions().begin()});
  }
  const NetworkShape shape{centred,
                           pooled,
                           real_shortcuts,
                           {strides.begin(), strides.end()},
                           {channels.begin(), channels.end()},
                           sizes[1],
                           sizes[2],
                           logits->dimensions()[1]};
  RunNetwork(PoolOf(pool), MakeNetwork(kVariants[variant], shape, Weights(weights)), sizes[0],
             sizes[1] * sizes[2] * sizes[3], images.typed_data(), logits->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace siman

extern "C" {

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_binary_conv, siman::BinaryConv,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Bits>()
                                  .Arg<siman::Words>()
                                  .Arg<siman::CornerSums>()
                                  .Ret<siman::Products>()
                                  .Ret<siman::Words>()
                                  .Attr<int64_t>("variant")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_residual_logits, siman::ResidualLogits,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<siman::Images>()
                                  .RemainingArgs()
                                  .Ret<siman::Logits>()
                                  .Attr<int64_t>("variant")
                                  .Attr<bool>("centred")
                                  .Attr<bool>("pooled")
                                  .Attr<bool>("real_shortcuts")
                                  .Attr<siman::Integers>("strides")
                                  .Attr<siman::Integers>("channels"));
}
