// Working memory for one run of an operator. One block is kept for the next run: a fresh one costs
// a page fault for every 4 KiB of it.
#pragma once

#include "ort_kernel.h"

namespace roast_ort {

constexpr size_t kScratchLine = 64;
// What is kept between runs, at most.
constexpr size_t kMaxSpare = size_t{16} << 20;

// At the start of a block; what is handed out follows on the next line.
struct ScratchBlock {
  size_t bytes;
};

// Takes the spare block, or makes one. On success `*block` is to be given back.
inline OrtStatus* take_scratch(const Kernel& kernel, size_t bytes, ScratchBlock** block) {
  const Api* api = kernel.host->api;
  *block = __atomic_exchange_n(&kernel.host->spare, nullptr, __ATOMIC_ACQUIRE);
  if (*block != nullptr && (*block)->bytes >= bytes) return nullptr;
  if (*block != nullptr) succeeded(api, api->AllocatorFree(kernel.allocator, *block));
  *block = nullptr;
  if (bytes > SIZE_MAX - 2 * kScratchLine) {
    return api->CreateStatus(ort_abi::kFail, "roast: the scratch memory does not fit a size");
  }
  void* made = nullptr;
  OrtStatus* status = api->AllocatorAlloc(kernel.allocator, bytes + 2 * kScratchLine, &made);
  if (status != nullptr) return status;
  if (made == nullptr) return api->CreateStatus(ort_abi::kFail, "roast: out of memory");
  *block = static_cast<ScratchBlock*>(made);
  (*block)->bytes = bytes;
  return nullptr;
}

inline void* scratch_of(ScratchBlock* block) {
  char* start = reinterpret_cast<char*>(block) + sizeof(ScratchBlock);
  const size_t past_line = reinterpret_cast<uintptr_t>(start) % kScratchLine;
  return start + (kScratchLine - past_line) % kScratchLine;
}

// Runs on other threads may have left a block meanwhile: the newer one stays.
inline void give_back(const Kernel& kernel, ScratchBlock* block) {
  const Api* api = kernel.host->api;
  if (block->bytes <= kMaxSpare) {
    block = __atomic_exchange_n(&kernel.host->spare, block, __ATOMIC_ACQ_REL);
  }
  if (block != nullptr) succeeded(api, api->AllocatorFree(kernel.allocator, block));
}

// When the last kernel goes.
inline void free_spare(const Kernel& kernel) {
  const Api* api = kernel.host->api;
  ScratchBlock* block = __atomic_exchange_n(&kernel.host->spare, nullptr, __ATOMIC_ACQUIRE);
  if (block != nullptr) succeeded(api, api->AllocatorFree(kernel.allocator, block));
}

}  // namespace roast_ort
