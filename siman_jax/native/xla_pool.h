// XLA's own threads as a pool.

#ifndef SIMAN_XLA_POOL_H_
#define SIMAN_XLA_POOL_H_

#include <functional>

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace siman {

// The pool is valid as long as `threads` is.
inline Pool PoolOf(xla::ffi::ThreadPool& threads) {
  return {threads.num_threads(), [&threads](int64_t times, const std::function<void()>& work) {
            for (; times > 0; --times) threads.Schedule(std::function<void()>(work));
          }};
}

}  // namespace siman

#endif  // SIMAN_XLA_POOL_H_
