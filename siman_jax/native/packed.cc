// Packed networks on XLA's CPU backend: the functions that Python calls.

#include <cstdint>
#include <vector>

#include "binary_conv.h"
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
  const Convolution n{image[1], image[2], words[1], words[2], words[3], taps[0], taps[1],
                      to[1],    to[2],    to[3],    top,      left,     stride};
  if (n.out % kLanes != 0) return ffi::Error::InvalidArgument("filters come in multiples of 16");
  RunBinaryConv(PoolOf(pool), *kVariants[variant], n, image[0], image[3],
                reinterpret_cast<const uint8_t*>(bits.typed_data()), kernel.typed_data(),
                corner_sums.typed_data(), padded->typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error ResidualLogits(ffi::ThreadPool pool, Images images, ffi::RemainingArgs buffers,
                          ffi::Result<Logits> logits, int64_t variant, bool centred, bool pooled,
                          bool real_shortcuts, Integers strides, Integers channels) {
  const auto sizes = images.dimensions();
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
