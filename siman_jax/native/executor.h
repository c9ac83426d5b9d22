// Runs the plan of a network for batches of images.
//
// Threads compute most images of a batch alone, at the same time, one or a few by each. If the last
// images are fewer than threads, all threads share the tasks of each stage.

#ifndef SIMAN_EXECUTOR_H_
#define SIMAN_EXECUTOR_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "plan.h"
#include "process.h"
#include "threads.h"

namespace siman {

class Executor {
 public:
  explicit Executor(std::unique_ptr<const Plan> plan) : plan_(std::move(plan)) {}

  int64_t image_size() const { return plan_->image_size; }
  int64_t result_size() const { return plan_->result_size; }

  void Run(const Pool& pool, int64_t batch, const float* images, float* results) {
    if (batch <= 0) return;
    const int64_t workers = std::min(Workers(pool), kMostThreads);
    const Rented rented(*this, workers);
    Call call{*this, images, results, workers, batch / workers * workers, batch, rented.all()};
    RunPhases(pool, workers, Phases(call));
  }

 private:
  using Space = Aligned<float>;

  struct Call {
    const Executor& executor;
    const float* images;
    float* results;
    int64_t workers, alone, batch;  // images that one thread computes each, and all images
    const std::vector<Space>& spaces;

    // The place is that of the image among those of a thread.
    Frame FrameOf(int64_t image, int64_t space, int64_t place, int64_t worker) const {
      const Plan& plan = *executor.plan_;
      // Spaces are written, but not changed in size.
      auto data = [&](int64_t index) { return const_cast<float*>(spaces[index].data()); };
      return {images + image * plan.image_size, data(space) + plan.scratch + place * plan.memory,
              data(worker), results + image * plan.result_size};
    }
    // Rounds of as many images as a thread computes together.
    int64_t Rounds() const {
      const int64_t each = alone / workers, together = executor.plan_->together;
      return (each + together - 1) / together * workers;
    }
    void Alone(int64_t round, int64_t worker) const {
      const int64_t rounds = Rounds(), begin = alone * round / rounds,
                    count = alone * (round + 1) / rounds - begin;
      Frame frames[Plan::kMostTogether];
      for (int64_t i = 0; i < count; ++i) frames[i] = FrameOf(begin + i, worker, i, worker);
      for (const Stage& stage : executor.plan_->stages) {
        if (stage.joined || count == 1) {
          for (int64_t i = 0; i < count; ++i) stage.run(frames[i], 0, stage.tasks);
          continue;
        }
        for (int64_t task = 0; task < stage.tasks; ++task)
          for (int64_t i = 0; i < count; ++i) stage.run(frames[i], task, task + 1);
      }
    }
    // Parts in which threads share a stage.
    int64_t Parts(const Stage& stage) const {
      return stage.joined ? std::min(stage.tasks, 2 * workers) : stage.tasks;
    }
    void Share(const Stage& stage, int64_t task, int64_t worker) const {
      const int64_t parts = Parts(stage), image = task / parts, part = task % parts;
      stage.run(FrameOf(alone + image, image, 0, worker), stage.tasks * part / parts,
                stage.tasks * (part + 1) / parts);
    }
  };

  std::vector<Phase> Phases(const Call& call) const {
    std::vector<Phase> phases;
    if (call.alone > 0)
      phases.push_back(
          {call.Rounds(), [&call](int64_t round, int64_t worker) { call.Alone(round, worker); }});
    if (call.alone < call.batch)
      for (const Stage& stage : plan_->stages)
        phases.push_back(
            {call.Parts(stage) * (call.batch - call.alone),
             [&call, &stage](int64_t task, int64_t worker) { call.Share(stage, task, worker); }});
    return phases;
  }

  // Memory for the threads of a call, which is kept for later calls. There is as much of it as
  // calls at the same time have threads.
  class Rented {
   public:
    Rented(Executor& executor, int64_t count) : executor_(executor) {
      {
        std::lock_guard<std::mutex> lock(ProcessMutex());
        std::vector<Space>& free = executor.free_;
        for (; count > 0 && !free.empty(); --count) {
          all_.push_back(std::move(free.back()));
          free.pop_back();
        }
      }
      for (; count > 0; --count) all_.emplace_back(executor.plan_->thread_memory());
    }
    ~Rented() {
      std::lock_guard<std::mutex> lock(ProcessMutex());
      for (Space& space : all_) executor_.free_.push_back(std::move(space));
    }
    Rented(const Rented&) = delete;
    const std::vector<Space>& all() const { return all_; }

   private:
    Executor& executor_;
    std::vector<Space> all_;
  };

  const std::unique_ptr<const Plan> plan_;
  std::vector<Space> free_;
};

}  // namespace siman

#endif  // SIMAN_EXECUTOR_H_
