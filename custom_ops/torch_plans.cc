// See torch_plans.h.
#include "torch_plans.h"

#include <atomic>
#include <mutex>
#include <new>

#include "roast_isa.h"
#include "torch_value.h"

namespace roast_torch {

namespace {

// Enough for every layer of a large model. Beyond, the plan that was not used for longest goes.
constexpr size_t kMaxPlans = 4096;
constexpr size_t kMaxTableBytes = size_t{256} << 20;
// A larger table is not made: one layer would push out those of all others.
constexpr size_t kMaxOneTable = kMaxTableBytes / 4;
constexpr size_t kBuckets = 4096;

// A plan keeps the instruction set that was chosen when it was made.
struct Key {
  Record record;
  const roast::Isa* isa;
  bool with_table;

  bool operator==(const Key& other) const {
    const Record &a = record, &b = other.record;
    return a.n == b.n && isa == other.isa && with_table == other.with_table &&
           __builtin_memcmp(&a.scale, &b.scale, sizeof a.scale) == 0 &&
           __builtin_memcmp(a.fields, b.fields, a.n * sizeof a.fields[0]) == 0;
  }
};

// Any mixing does: records are compared in full. Two chains, since one multiplication waits for
// the one before.
size_t bucket_of(const Key& key) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
  uint32_t scale;
  __builtin_memcpy(&scale, &key.record.scale, sizeof scale);
  uint64_t even = scale, odd = key.record.n;
  for (size_t k = 0; k < key.record.n; ++k) {
    uint64_t& mixed = k % 2 == 0 ? even : odd;
    mixed = (mixed ^ static_cast<uint64_t>(key.record.fields[k])) * kOdd;
    mixed ^= mixed >> 29;
  }
  return static_cast<size_t>((even ^ odd * kOdd) >> 40) % kBuckets;
}

}  // namespace

struct PlanEntry {
  Key key;
  PlanEntry* next = nullptr;
  uint64_t last_use = 0;
  // Of those who compute with it and of the cache; the last one frees it.
  std::atomic<size_t> users{1};
  size_t table_bytes = 0;
  std::atomic<bool> complete{false};
  std::mutex completing;
  void* table = nullptr;
  roast_plan* plan = nullptr;

  explicit PlanEntry(const Key& its_key) : key(its_key) {}
  ~PlanEntry() {
    ::operator delete(table);
    ::operator delete(plan);
  }

  void release() {
    if (users.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  // Outside the cache's lock: a table may take long.
  void complete_table() {
    if (complete.load(std::memory_order_acquire)) return;
    const std::lock_guard<std::mutex> lock(completing);
    if (complete.load(std::memory_order_relaxed)) return;
    if (table_bytes > 0) table = ::operator new(table_bytes, std::nothrow);
    if (table != nullptr) roast_plan_attach_table(plan, table);
    complete.store(true, std::memory_order_release);
  }
};

namespace {

std::unique_ptr<PlanEntry> make_entry(const char* op, const Key& key) {
  auto entry = std::make_unique<PlanEntry>(key);
  entry->plan = static_cast<roast_plan*>(::operator new(roast_plan_bytes()));
  char reason[kMessage];
  const Record& record = key.record;
  if (roast_plan_init(entry->plan, record.fields, record.n, record.scale, reason, kMessage) != 0) {
    fail(op, reason);
  }
  const size_t bytes = key.with_table ? roast_plan_table_bytes(entry->plan) : 0;
  entry->table_bytes = bytes <= kMaxOneTable ? bytes : 0;
  return entry;
}

class PlanCache {
 public:
  // Holds the entry for the caller; null if there is none.
  PlanEntry* find(const Key& key, size_t bucket) {
    const std::lock_guard<std::mutex> lock(lock_);
    return find_locked(key, bucket);
  }

  // The entry of another thread, if that was faster.
  PlanEntry* insert(std::unique_ptr<PlanEntry> made, size_t bucket) {
    const std::lock_guard<std::mutex> lock(lock_);
    PlanEntry* const found = find_locked(made->key, bucket);
    if (found != nullptr) return found;
    while (plans_ > 0 && (plans_ >= kMaxPlans || bytes_ + made->table_bytes > kMaxTableBytes)) {
      evict();
    }
    PlanEntry* const entry = made.release();
    entry->next = buckets_[bucket];
    buckets_[bucket] = entry;
    ++plans_;
    bytes_ += entry->table_bytes;
    return hold(entry);
  }

  size_t plans() {
    const std::lock_guard<std::mutex> lock(lock_);
    return plans_;
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(lock_);
    return bytes_;
  }

 private:
  PlanEntry* hold(PlanEntry* entry) {
    entry->last_use = ++clock_;
    entry->users.fetch_add(1, std::memory_order_relaxed);
    return entry;
  }

  PlanEntry* find_locked(const Key& key, size_t bucket) {
    PlanEntry* entry = buckets_[bucket];
    while (entry != nullptr && !(entry->key == key)) entry = entry->next;
    return entry != nullptr ? hold(entry) : nullptr;
  }

  // An entry in use lives on until its users are done.
  void evict() {
    PlanEntry** oldest = nullptr;
    for (PlanEntry*& bucket : buckets_) {
      for (PlanEntry** link = &bucket; *link != nullptr; link = &(*link)->next) {
        if (oldest == nullptr || (*link)->last_use < (*oldest)->last_use) oldest = link;
      }
    }
    PlanEntry* const entry = *oldest;
    *oldest = entry->next;
    --plans_;
    bytes_ -= entry->table_bytes;
    entry->release();
  }

  std::mutex lock_;
  PlanEntry* buckets_[kBuckets] = {};
  size_t plans_ = 0, bytes_ = 0;
  uint64_t clock_ = 0;
};

// Never destroyed: threads of the host may compute until the process is gone.
PlanCache& cache() {
  static PlanCache* const kept = new PlanCache;
  return *kept;
}

}  // namespace

Plan::Plan(const char* op, const Record& record, bool with_table) {
  const Key key{record, &roast::chosen_isa(), with_table};
  const size_t bucket = bucket_of(key);
  entry_ = cache().find(key, bucket);
  if (entry_ == nullptr) entry_ = cache().insert(make_entry(op, key), bucket);
  entry_->complete_table();
}

Plan::~Plan() { entry_->release(); }

const roast_plan* Plan::get() const { return entry_->plan; }

}  // namespace roast_torch

size_t roast_torch_plans(void) { return roast_torch::cache().plans(); }

size_t roast_torch_table_bytes(void) { return roast_torch::cache().bytes(); }
