// Packed networks on XLA's CPU backend: the functions that Python calls.

#include <cstdint>

#include "binary_conv.h"
#include "residual.h"
#include "threads.h"
#include "variants.h"
#include "xla/ffi/api/ffi.h"

namespace siman {
namespace {

using Images = ffi::Buffer<ffi::F32, 4>;
using Logits = ffi::Buffer<ffi::F32, 2>;
using Integers = ffi::Span<const int64_t>;

// The weights one after another, as `native.residual_logits` lists them.
class Weights {
 public:
  explicit Weights(const ffi::RemainingArgs& buffers) : buffers_(buffers) {}

  ffi::AnyBuffer Next() { return *buffers_.get<ffi::AnyBuffer>(next_++); }
  const float* Floats() { return Next().typed_data<float>(); }
  Norm NextNorm() {
    const float* gain = Floats();
    return {gain, Floats()};
  }

 private:
  const ffi::RemainingArgs& buffers_;
  size_t next_ = 0;
};

// Of a square kernel, padded so that without stride an image keeps its size.
Convolution SamePadded(int64_t height, int64_t width, int64_t depth, int64_t taps, int64_t stride,
                       int64_t out) {
  const int64_t before = (taps - 1) / 2, both = taps - 1;
  const int64_t rows = (height - 1) / stride + 1, columns = (width - 1) / stride + 1;
  return {height, width,   height + both, width + both, depth,  taps,  taps,
          rows,   columns, out,           before,       before, stride};
}

// `strides` of the stem and the units; `channels` of the images, the stem and the units. Widths in
// memory, which are multiples of kLanes, are those of the vectors among the weights.
ffi::Error ResidualLogits(ffi::ThreadPool pool, Images images, ffi::RemainingArgs buffers,
                          ffi::Result<Logits> logits, int64_t variant, bool centred, bool pooled,
                          bool real_shortcuts, Integers strides, Integers channels) {
  const auto sizes = images.dimensions();
  Weights weights(buffers);
  Network network{kVariants[variant], centred, {}, {}, {}};

  const float* kernel = weights.Floats();
  const auto gain = weights.Next();
  int64_t width = gain.dimensions()[0];
  network.stem = {SamePadded(sizes[1], sizes[2], channels[0], pooled ? 7 : 3, strides[0], width),
                  kernel,
                  {gain.typed_data<float>(), weights.Floats()},
                  pooled};
  int64_t rows = network.stem.rows(), columns = network.stem.columns();
  for (size_t i = 1; i < strides.size(); ++i) {
    Unit unit{};
    unit.words = weights.Next().typed_data<uint32_t>();
    const auto sums = weights.Next();
    unit.corner_sums = sums.typed_data<int32_t>();
    const int64_t taps = sums.dimensions()[0] - 1, out = sums.dimensions()[2];
    unit.channels = channels[i];
    unit.in = width;
    unit.features = channels[i + 1];
    unit.conv = SamePadded(rows, columns, (unit.channels + kWordBits - 1) / kWordBits, taps,
                           strides[i], out);
    unit.norm = weights.NextNorm();
    unit.slope = weights.Floats();
    if (strides[i] != 1 || unit.channels != unit.features) {
      unit.shortcut = real_shortcuts ? Shortcut::kReal : Shortcut::kZeros;
      if (real_shortcuts) {
        unit.shortcut_kernel = weights.Floats();
        unit.shortcut_norm = weights.NextNorm();
      }
    }
    network.units.push_back(unit);
    rows = unit.conv.rows;
    columns = unit.conv.columns;
    width = out;
  }
  const Norm norm = weights.NextNorm();
  network.classifier = {norm, weights.Floats(), weights.Floats(), width, logits->dimensions()[1]};
  RunNetwork(pool, network, sizes[0], sizes[1] * sizes[2] * sizes[3], images.typed_data(),
             logits->typed_data());
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
