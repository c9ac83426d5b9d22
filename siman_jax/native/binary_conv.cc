// The convolution of bits that Python calls, on XLA's CPU backend.

#include "binary_conv.h"

#include <cstdint>

#include "checks.h"
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
}
