// Plans by mapping: operators of torch keep no state, so the plans of a process are kept here.
#pragma once

#include "roast_kernel.h"
#include "roast_mapping.h"

namespace roast_torch {

// The flat list of mapping.md section 5, as long as it came, and the scale.
struct Record {
  int64_t fields[roast::kHeaderLength + roast::kMaxDims];
  size_t n;
  float scale;
};

struct PlanEntry;

// Holds a plan for as long as it is used.
class Plan {
 public:
  // With its table, if `with_table` and the table is not too large. Throws what is wrong with the
  // record; as fast as a look-up where the plan is known.
  Plan(const char* op, const Record& record, bool with_table);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const roast_plan* get() const;

 private:
  PlanEntry* entry_;
};

}  // namespace roast_torch

extern "C" {
// For tests: how many plans are kept, and the bytes of their tables.
ROAST_EXPORT size_t roast_torch_plans(void);
ROAST_EXPORT size_t roast_torch_table_bytes(void);
}
