// What the operators have in common: the weight, the array, and the way out for other types.
#pragma once

#include "torch_plans.h"
#include "torch_value.h"

namespace roast_torch {

// Which table an operator wants: an embedding reads few rows, and gains from the saved states of a
// generator alone.
enum class Table { kAlways, kIfDrawn };

// The arguments `mapping` and `scale`, checked.
struct Weight {
  Weight(const char* op, const List& mapping, double scale, Table table);

  const roast_plan* plan() const { return held.get(); }
  int64_t n_dims() const { return record.fields[roast::kHeaderLength - 1]; }
  const int64_t* shape() const { return record.fields + roast::kHeaderLength; }
  int64_t numel() const { return roast_plan_numel(plan()); }
  int64_t n_memory() const { return roast_plan_n_memory(plan()); }

  Record record;
  Plan held;
};

// The weight of an embedding, else an error.
void require_rows(const char* op, const Weight& weight);

// Refuses an array that does not fit the weight.
void inspect_memory(const char* op, const Weight& weight, Tensor* memory);

// Makes ids int64 and contiguous. Refuses one that names no row.
void inspect_ids(const char* op, const Weight& weight, Tensor* ids);

// False where `forward` is to compute instead; refuses a type that nobody computes with.
enum class Floats { kFloat32, kAlsoHalf };
bool served(const char* op, const char* name, const Tensor& tensor, Floats floats);

inline int memory_type(const Tensor& memory) {
  return memory.type == types().float16 ? ROAST_FLOAT16 : ROAST_FLOAT32;
}

// Has roast::OP_aten compute, an operator for all floating types that the package's Python defines.
// `stack` holds the arguments again, and then the result.
void forward(const char* op, Value* stack);

}  // namespace roast_torch
