#include "cpu/memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <atomic>
#include <mutex>
#include <vector>

namespace fastmlp {
namespace {

// Smaller blocks are malloc's. (With 64 KiB those just below moved the end of malloc's heap back
// and forth: 30 page faults a step of 784-300-10 at batch 50.)
constexpr size_t kSmallest = 16 << 10;
constexpr size_t kLine = 64;

struct Block {
  void* data;
  size_t size;
};

class Cache final : public c10::Allocator {
 public:
  // Never destroyed: tensors may outlive every static object.
  static Cache& instance() {
    static Cache* const cache = create();
    return *cache;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest) return c10::GetCPUAllocator()->allocate(bytes);
    const size_t size = (bytes + kLine - 1) / kLine * kLine;
    auto* block = new Block(take(size));
    if (!block->data) {
      try {
        *block = {c10::alloc_cpu(size), size};
      } catch (...) {  // out of memory, perhaps for what the cache holds
        empty();
        *block = {c10::alloc_cpu(size), size};
      }
      in_use_ += size;
    }
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, &Cache::release, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cached_;
  }

  void empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    peak_ = in_use_;
    shrink(0);
  }

 private:
  static Cache* create() {
#if defined(__unix__) || defined(__APPLE__)
    // A child process gets the cache whole and its lock free, whatever other threads were doing.
    const auto unlock = [] { instance().mutex_.unlock(); };
    pthread_atfork([] { instance().mutex_.lock(); }, unlock, unlock);
#endif
    return new Cache;
  }

  // A thread that finds the cache busy passes it by: nobody waits.
  using TryLock = std::unique_lock<std::mutex>;

  // The smallest block that serves, or none.
  Block take(size_t size) {
    const TryLock lock(mutex_, std::try_to_lock);
    if (!lock) return {nullptr, 0};
    auto best = free_.end();
    for (auto one = free_.begin(); one != free_.end(); ++one) {
      if (one->size >= size && one->size <= size + size / 8 &&
          (best == free_.end() || one->size <= best->size))
        best = one;
    }
    peak_ = std::max(peak_, in_use_ + size);
    if (best == free_.end()) {
      shrink_to_bound();
      return {nullptr, 0};
    }
    const Block block = *best;
    free_.erase(best);
    cached_ -= block.size;
    in_use_ += block.size;
    return block;
  }

  static void release(void* context) {
    Block* const block = static_cast<Block*>(context);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    instance().put(*block);
    delete block;
  }

  void put(Block block) {
    in_use_ -= block.size;
    const TryLock lock(mutex_, std::try_to_lock);
    if (!lock) return c10::free_cpu(block.data);
    free_.push_back(block);
    cached_ += block.size;
    shrink_to_bound();
  }

  // With less than twice the peak, steps whose blocks are of many sizes lost some in every step:
  // 4 page faults in one of 784-300-10 at batch 50, 288 in one of 5 × 1024 at batch 1024.
  void shrink_to_bound() {
    const size_t bound = 2 * peak_, used = in_use_;
    shrink(bound > used ? bound - used : 0);
  }

  // The blocks that have waited longest go first.
  void shrink(size_t bytes) {
    auto end = free_.begin();
    for (; end != free_.end() && cached_ > bytes; ++end) {
      cached_ -= end->size;
      c10::free_cpu(end->data);
    }
    free_.erase(free_.begin(), end);
  }

  std::mutex mutex_;
  std::vector<Block> free_;  // by the time when they were left
  size_t cached_ = 0, peak_ = 0;
  std::atomic<size_t> in_use_{0};
};

}  // namespace

at::Tensor uninitialized(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::detail::empty_generic(sizes, &Cache::instance(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

int64_t cached_bytes() { return static_cast<int64_t>(Cache::instance().bytes()); }

void empty_cache() { Cache::instance().empty(); }

}  // namespace fastmlp
