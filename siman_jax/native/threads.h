// Runs work on the threads of a pool and on the calling thread.

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

namespace siman {

// Threads owned by the caller; `schedule` has `times` of them run the work, and returns at once.
struct Pool {
  int64_t threads;
  std::function<void(int64_t times, const std::function<void()>& work)> schedule;
};

// Calls of `run` with task 0 to tasks - 1, each once, in any order and in parallel. `worker`
// numbers the threads at work, from 0.
struct Phase {
  int64_t tasks;
  std::function<void(int64_t task, int64_t worker)> run;
};

// How many threads `RunPhases` may use.
inline int64_t Workers(const Pool& pool) { return std::max<int64_t>(1, pool.threads); }

// Lets the processor rest for a moment.
inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits until `count` reaches `goal`; after a few thousand checks it yields to other threads.
inline void WaitFor(const std::atomic<int64_t>& count, int64_t goal) {
  for (int looks = 0; count.load(std::memory_order_acquire) < goal; ++looks) {
    if (looks > 4000)
      std::this_thread::yield();
    else
      Pause();
  }
}

// Runs one phase after another. Helpers are scheduled once and stay until the last phase, because
// waking a thread takes longer than most phases. A helper that starts late joins the current phase.
// One that never starts does no harm: the caller can do all the work, and threads wait only for
// tasks that are already running.
//
// A worker begins with its own share of the tasks, so that what it wrote in one phase is in its
// cache in the next, and then helps the others. There are at most as many helpers as the largest
// phase has tasks.
inline void RunPhases(const Pool& pool, int64_t workers, std::vector<Phase> phases) {
  using Counter = std::atomic<int64_t>;
  int64_t most = 1;
  for (const Phase& phase : phases) most = std::max(most, phase.tasks);
  workers = std::min(workers, most);
  struct State {
    State(std::vector<Phase> all, int64_t workers)
        : phases(std::move(all)), begun(phases.size() * workers), finished(phases.size()) {}
    const std::vector<Phase> phases;
    std::vector<Counter> begun;  // by phase and share
    std::vector<Counter> finished;
    Counter joined{0};
  };
  auto state = std::make_shared<State>(std::move(phases), workers);
  auto work = [state, workers] {
    const int64_t worker = state->joined.fetch_add(1);
    for (size_t i = 0; i < state->phases.size(); ++i) {
      const Phase& phase = state->phases[i];
      for (int64_t turn = 0; turn < workers; ++turn) {
        const int64_t share = (worker + turn) % workers, begin = phase.tasks * share / workers,
                      end = phase.tasks * (share + 1) / workers;
        Counter& begun = state->begun[i * workers + share];
        for (int64_t task; (task = begin + begun.fetch_add(1)) < end;) {
          phase.run(task, worker);
          state->finished[i].fetch_add(1, std::memory_order_release);
        }
      }
      WaitFor(state->finished[i], phase.tasks);
    }
  };
  pool.schedule(workers - 1, work);
  work();
}

}  // namespace siman

#endif  // SIMAN_THREADS_H_
