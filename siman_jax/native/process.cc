#include "process.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <system_error>
#include <thread>

namespace siman {
namespace {

struct Process {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> work;
  std::atomic<int64_t> waiting{0};  // the size of `work`
  int64_t threads = 0;
};

// Never destroyed, since threads may still run when the process ends.
Process* process = nullptr;

// A process made by fork has one thread, and nobody there would unlock what others had locked. So
// nobody may hold the lock during a fork, and the new process begins without threads.
void Prepare() { process->mutex.lock(); }
void Parent() { process->mutex.unlock(); }
void Child() { process = new Process; }

Process& Own() {
  static std::once_flag once;
  std::call_once(once, [] {
    process = new Process;
    pthread_atfork(Prepare, Parent, Child);
  });
  return *process;
}

void Serve(Process& own) {
  for (;;) {
    std::function<void()> work;
    {
      std::unique_lock<std::mutex> lock(own.mutex);
      own.wake.wait(lock, [&] { return !own.work.empty(); });
      work = std::move(own.work.front());
      own.work.pop_front();
      own.waiting.store(static_cast<int64_t>(own.work.size()));
    }
    work();
    work = nullptr;
    // To wake a thread takes longer than to compute a small network, and calls often follow each
    // other.
    for (int looks = 0; looks < 2000 && own.waiting.load() == 0; ++looks) Pause();
  }
}

}  // namespace

std::mutex& ProcessMutex() { return Own().mutex; }

Pool ProcessPool(int64_t threads) {
  threads = std::clamp<int64_t>(threads, 1, kMostThreads);
  return {threads, [](int64_t times, const std::function<void()>& work) {
            if (times <= 0) return;
            Process& own = Own();
            {
              std::lock_guard<std::mutex> lock(own.mutex);
              for (int64_t i = 0; i < times; ++i) own.work.push_back(work);
              own.waiting.store(static_cast<int64_t>(own.work.size()));
              try {
                for (; own.threads < times; ++own.threads)
                  std::thread([&own] { Serve(own); }).detach();
              } catch (const std::system_error&) {
                // There are no more threads; those there are do the work.
              }
            }
            for (int64_t i = 0; i < times; ++i) own.wake.notify_one();
          }};
}

}  // namespace siman
