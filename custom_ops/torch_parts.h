// Parts on torch's threads, and scratch that outlives a call.
#pragma once

#include <atomic>
#include <new>

#include "torch_value.h"

namespace roast_torch {

// Runs run(0) to run(parts - 1). A thread takes the next part when it is done with one: parts take
// unequal time, and so do cores.
template <class Run>
void run_parts(const char* op, size_t parts, const Run& run) {
  if (parts <= 1) {
    if (parts == 1) run(size_t{0});
    return;
  }
  struct Shared {
    const Run* run;
    size_t parts;
    std::atomic<size_t> next;
  } shared{&run, parts, {0}};
  const auto work = [](int64_t, int64_t, void* context) {
    auto* const all = static_cast<Shared*>(context);
    for (size_t part; (part = all->next.fetch_add(1, std::memory_order_relaxed)) < all->parts;) {
      (*all->run)(part);
    }
  };
  check(op, torch_abi::torch_parallel_for(0, static_cast<int64_t>(parts), 1, work, &shared));
}

// Scratch of RoastLinear. One block is kept for the next call: fresh pages would be as slow as the
// product of a small layer.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    block_ = spare().exchange(nullptr, std::memory_order_acquire);
    if (block_ != nullptr && block_->bytes >= bytes) return;
    release(block_);
    block_ = nullptr;
    void* const fresh = ::operator new(kLine + bytes, std::align_val_t{kLine});
    block_ = new (fresh) Block{bytes};
  }
  ~Scratch() {
    if (block_->bytes <= kMaxSpare) {
      block_ = spare().exchange(block_, std::memory_order_acq_rel);
    }
    release(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return reinterpret_cast<char*>(block_) + kLine; }

 private:
  static constexpr size_t kLine = 64;
  static constexpr size_t kMaxSpare = size_t{16} << 20;

  struct Block {
    size_t bytes;
  };

  static std::atomic<Block*>& spare() {
    static std::atomic<Block*> kept{nullptr};
    return kept;
  }
  static void release(Block* block) { ::operator delete(block, std::align_val_t{kLine}); }

  Block* block_;
};

}  // namespace roast_torch
