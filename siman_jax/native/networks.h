// The networks that exist in this process.

#ifndef SIMAN_NETWORKS_H_
#define SIMAN_NETWORKS_H_

#include <cstdint>
#include <memory>

#include "executor.h"

namespace siman {

// Compiled programs name a network by its number, which is never used again. Returns null if it
// was destroyed.
std::shared_ptr<Executor> FindNetwork(int64_t number);

}  // namespace siman

#endif  // SIMAN_NETWORKS_H_
