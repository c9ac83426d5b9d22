// Networks inside of programs that XLA compiles, on its CPU backend.

#include <cstdint>
#include <exception>
#include <memory>

#include "checks.h"
#include "networks.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace siman {
namespace {

namespace ffi = xla::ffi;

ffi::Error RunInProgram(ffi::ThreadPool pool, ffi::AnyBuffer images,
                        ffi::Result<ffi::AnyBuffer> results, int64_t network) {
  const std::shared_ptr<Executor> executor = FindNetwork(network);
  if (executor == nullptr)
    return ffi::Error::InvalidArgument("siman_network: the network was destroyed");
  const auto from = images.dimensions(), to = results->dimensions();
  Check check("siman_network");
  check(images.element_type() == ffi::F32 && results->element_type() == ffi::F32,
        "images and results of float32");
  check(from.size() >= 1 && to.size() >= 1 && from[0] == to[0], "a result for each image");
  if (check.failed()) return check.error();
  const auto count = static_cast<int64_t>(from[0]);
  check(static_cast<int64_t>(images.element_count()) == count * executor->image_size() &&
            static_cast<int64_t>(results->element_count()) == count * executor->result_size(),
        "images and results of the network's sizes");
  if (check.failed()) return check.error();
  try {
    executor->Run(PoolOf(pool), count, images.typed_data<float>(), results->typed_data<float>());
  } catch (const std::exception&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "siman_network: not enough memory");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace siman

extern "C" {

XLA_FFI_DEFINE_HANDLER_SYMBOL(siman_network_call, siman::RunInProgram,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("network"));
}
