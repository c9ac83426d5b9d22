// Work on XLA's own threads and the calling one.

#ifndef SIMAN_THREADS_H_
#define SIMAN_THREADS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace siman {

// Calls of `run` with task 0 to tasks - 1, each once, in any order and at the same time. `worker`
// tells the threads at work apart: it is below their number.
struct Phase {
  int64_t tasks;
  std::function<void(int64_t task, int64_t worker)> run;
};

// How many threads `RunPhases` may employ.
inline int64_t Workers(const xla::ffi::ThreadPool& pool) {
  return std::max<int64_t>(1, pool.num_threads());
}

// Runs one phase after another. Each helper is sent for once and then stays until the last phase,
// because waking a thread takes longer than most phases do. One that comes late joins the phase at
// hand, one that never comes is not missed: the caller could do it all, and nobody waits but for
// tasks that somebody is at work on.
inline void RunPhases(xla::ffi::ThreadPool& pool, int64_t workers, std::vector<Phase> phases) {
  struct Progress {
    std::atomic<int64_t> next{0}, finished{0};
  };
  struct State {
    explicit State(std::vector<Phase> all) : phases(std::move(all)), progress(phases.size()) {}
    const std::vector<Phase> phases;
    std::vector<Progress> progress;
    std::atomic<int64_t> joined{0};
  };
  // How often to look whether others have finished, before the processor is offered to them.
  constexpr int kLooks = 4000;
  auto state = std::make_shared<State>(std::move(phases));
  auto work = [state] {
    const int64_t worker = state->joined.fetch_add(1);
    for (size_t i = 0; i < state->phases.size(); ++i) {
      const Phase& phase = state->phases[i];
      Progress& progress = state->progress[i];
      for (int64_t task; (task = progress.next.fetch_add(1)) < phase.tasks;) {
        phase.run(task, worker);
        progress.finished.fetch_add(1, std::memory_order_release);
      }
      for (int looks = 0; progress.finished.load(std::memory_order_acquire) < phase.tasks;) {
        if (++looks > kLooks) {
          std::this_thread::yield();
          continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
      }
    }
  };
  for (int64_t helper = 1; helper < workers; ++helper) pool.Schedule([work] { work(); });
  work();
}

}  // namespace siman

#endif  // SIMAN_THREADS_H_
