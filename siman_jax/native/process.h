// Threads of the process for networks that are not called by XLA, and a lock that is free in a
// process made by fork.

#ifndef SIMAN_PROCESS_H_
#define SIMAN_PROCESS_H_

#include <cstdint>
#include <mutex>

#include "threads.h"

namespace siman {

constexpr int64_t kMostThreads = 256;

// Guards what may be in use when the process forks, for a few instructions at a time.
std::mutex& ProcessMutex();

// A pool of so many threads, the calling one included. All pools share their threads, which start
// when they are first needed. If none can be started, the caller does all the work.
Pool ProcessPool(int64_t threads);

}  // namespace siman

#endif  // SIMAN_PROCESS_H_
