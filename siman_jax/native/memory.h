// Memory that is kept from call to call.

#ifndef SIMAN_MEMORY_H_
#define SIMAN_MEMORY_H_

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace siman {

// Uninitialized floats from a free list of the process, which never shrinks. In memory newly
// allocated by the system, the first access to every page takes a microsecond.
class Memory {
 public:
  explicit Memory(int64_t size) {
    {
      std::lock_guard<std::mutex> lock(store().mutex);
      auto& free = store().free;
      auto found = std::find_if(free.rbegin(), free.rend(),
                                [&](const Block& block) { return block.size >= size; });
      if (found != free.rend()) {
        block_ = *found;
        free.erase(std::next(found).base());
        return;
      }
    }
    block_ = {size, static_cast<float*>(::operator new(size * sizeof(float), kAlignment))};
  }
  ~Memory() {
    if (block_.data == nullptr) return;
    std::lock_guard<std::mutex> lock(store().mutex);
    store().free.push_back(block_);
  }
  Memory(Memory&& other) noexcept : block_(other.block_) { other.block_ = {}; }
  Memory& operator=(Memory&&) = delete;

  float* data() const { return block_.data; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Block {
    int64_t size;
    float* data;
  };
  struct Store {
    std::mutex mutex;
    std::vector<Block> free;
  };

  // Never destroyed, since threads may still run when the process ends.
  static Store& store() {
    static Store& all = *new Store;
    return all;
  }

  Block block_;
};

}  // namespace siman

#endif  // SIMAN_MEMORY_H_
