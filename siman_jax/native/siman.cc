// The C interface.

#include "siman.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "executor.h"
#include "networks.h"
#include "planner.h"
#include "process.h"
#include "program.h"
#include "variants.h"

struct siman_network {
  std::shared_ptr<siman::Executor> executor;
  int64_t number;
};

namespace siman {
namespace {

// Guarded by ProcessMutex.
std::map<int64_t, std::shared_ptr<Executor>>& Networks() {
  static auto& all = *new std::map<int64_t, std::shared_ptr<Executor>>;
  return all;
}
int64_t networks_made = 0;

const Variant& VariantOf(const char* name) {
  for (int i = 0; kVariants[i] != nullptr; ++i)
    if (kVariants[i]->supported() &&
        (name == nullptr || std::strcmp(name, kVariants[i]->name) == 0))
      return *kVariants[i];
  throw std::invalid_argument("expected an instruction set that this processor has");
}

void Tell(const char* what, char* error, size_t error_size) {
  if (error != nullptr && error_size > 0) std::snprintf(error, error_size, "%s", what);
}

// Runs body; returns whether it succeeded.
template <typename Body>
bool Guarded(char* error, size_t error_size, const Body& body) {
  try {
    body();
    return true;
  } catch (const std::bad_alloc&) {
    Tell("there is not enough memory", error, error_size);
  } catch (const std::length_error&) {
    Tell("there is not enough memory", error, error_size);
  } catch (const std::exception& problem) {
    Tell(problem.what(), error, error_size);
  }
  return false;
}

}  // namespace

std::shared_ptr<Executor> FindNetwork(int64_t number) {
  std::lock_guard<std::mutex> lock(ProcessMutex());
  const auto found = Networks().find(number);
  return found == Networks().end() ? nullptr : found->second;
}

}  // namespace siman

extern "C" {

siman_network* siman_create(int64_t count, const siman_operation* operations, int64_t result,
                            const char* variant, char* error, size_t error_size) {
  siman_network* network = nullptr;
  siman::Guarded(error, error_size, [&] {
    const siman::Variant& run = siman::VariantOf(variant);
    const siman::Program program = siman::ProgramReader::Read(count, operations, result);
    auto executor = std::make_shared<siman::Executor>(siman::Planner::Make(run, program));
    auto made = std::make_unique<siman_network>(siman_network{executor, 0});
    std::lock_guard<std::mutex> lock(siman::ProcessMutex());
    made->number = ++siman::networks_made;
    siman::Networks()[made->number] = executor;
    network = made.release();
  });
  return network;
}

void siman_destroy(siman_network* network) {
  if (network == nullptr) return;
  std::shared_ptr<siman::Executor> last;  // is freed without the lock
  {
    std::lock_guard<std::mutex> lock(siman::ProcessMutex());
    const auto found = siman::Networks().find(network->number);
    last = std::move(found->second);
    siman::Networks().erase(found);
  }
  delete network;
}

int64_t siman_network_number(const siman_network* network) { return network->number; }
int64_t siman_image_size(const siman_network* network) { return network->executor->image_size(); }
int64_t siman_result_size(const siman_network* network) { return network->executor->result_size(); }

int siman_run(siman_network* network, int64_t batch, const float* images, float* results,
              int64_t threads, char* error, size_t error_size) {
  const bool well = siman::Guarded(error, error_size, [&] {
    if (network == nullptr || batch < 0 || threads < 1 ||
        (batch > 0 && (images == nullptr || results == nullptr)))
      throw std::invalid_argument(
          "expected a network, a batch of 0 or more, images and results that are not null, and 1 "
          "thread or more");
    network->executor->Run(siman::ProcessPool(threads), batch, images, results);
  });
  return well ? 0 : 1;
}
}
