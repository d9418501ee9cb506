// See torch_call.h.
#include "torch_call.h"

#include <atomic>
#include <limits>
#include <mutex>
#include <utility>

namespace roast_torch {

namespace {

Record read_record(const char* op, const List& mapping, double scale) {
  Record record;
  check(op, torch_abi::torch_list_size(mapping.get(), &record.n));
  if (record.n > roast::kHeaderLength + roast::kMaxDims) {
    fail(op, "a mapping list of ", static_cast<int64_t>(record.n),
         " integers has the wrong length; docs/mapping.md section 5 describes the list");
  }
  for (size_t k = 0; k < record.n; ++k) {
    Value field = 0;
    check(op, torch_abi::torch_list_get_item(mapping.get(), k, &field));
    record.fields[k] = value_as<int64_t>(field);
  }
  constexpr double kMost = std::numeric_limits<float>::max();
  // False for NaN too.
  if (!(-kMost <= scale && scale <= kMost)) fail(op, "scale is not a finite float32");
  record.scale = static_cast<float>(scale);
  return record;
}

// Fields that are not there were not read; the plan refuses such a list.
bool draws(const Record& record) {
  return record.n > roast::kHeaderLength &&
         (record.fields[1] != roast::kHashed || record.fields[2] == roast::kMt19937Sign);
}

const char* type_name(int32_t type) {
  const Types& all = types();
  if (type == all.float32) return "float32";
  if (type == all.float16) return "float16";
  if (type == all.float64) return "float64";
  if (type == all.bfloat16) return "bfloat16";
  if (type == all.int32) return "int32";
  return type == all.int64 ? "int64" : "of another type";
}

// Whether roast::OP_aten is defined. torch has no such question, but refuses a second definition.
// Who defines one defines all, and for good.
bool has_fallback(const char* op) {
  static std::mutex lock;
  static std::atomic<bool> found{false};
  if (found.load(std::memory_order_relaxed)) return true;
  const std::lock_guard<std::mutex> guard(lock);
  torch_abi::LibraryHandle probe = nullptr;
  check(op, torch_abi::aoti_torch_library_init_fragment("roast", "libroast_torch", 0, &probe));
  char schema[kMessage];
  roast::Text(schema, kMessage) << op << "_aten() -> ()";
  found = torch_abi::aoti_torch_library_def(probe, schema) != torch_abi::kSuccess;
  torch_abi::aoti_torch_delete_library_object(probe);
  return found;
}

}  // namespace

Weight::Weight(const char* op, const List& mapping, double scale, Table table)
    : record(read_record(op, mapping, scale)),
      held(op, record, table == Table::kAlways || draws(record)) {}

void require_rows(const char* op, const Weight& weight) {
  if (weight.n_dims() == 2) return;
  fail(op, "the weight has ", weight.n_dims(), " dimensions, an embedding has 2: rows and dim");
}

void inspect_memory(const char* op, const Weight& weight, Tensor* memory) {
  inspect(op, "memory", memory);
  if (memory->rank == 1 && memory->numel == weight.n_memory()) return;
  fail(op, "memory has ", memory->numel, " elements in ", memory->rank,
       " dimensions, the mapping needs ", weight.n_memory(), " in one");
}

void inspect_ids(const char* op, const Weight& weight, Tensor* ids) {
  inspect(op, "ids", ids);
  if (ids->type != types().int64 && ids->type != types().int32) {
    fail(op, "ids must be int64 or int32, not ", type_name(ids->type));
  }
  *ids = plain(op, std::move(*ids), types().int64);
  const auto* const values = elements<int64_t>(op, *ids);
  const size_t n = static_cast<size_t>(ids->numel);
  const size_t bad = roast_embedding_bad_id(weight.plan(), weight.shape()[1], values, n);
  if (bad < n) {
    fail_index(op, "an id is outside [0, ", weight.shape()[0], "): ", values[bad], " at place ",
               static_cast<int64_t>(bad));
  }
}

bool served(const char* op, const char* name, const Tensor& tensor, Floats floats) {
  const int32_t type = tensor.type;
  if (type == types().float32) return true;
  if (type == types().float16 && floats == Floats::kAlsoHalf) return true;
  if (types().floating(type) && has_fallback(op)) return false;
  fail(op, name, " is ", type_name(type), ", it must be float32",
       floats == Floats::kAlsoHalf ? " or float16" : "");
}

void forward(const char* op, Value* stack) {
  char name[kMessage];
  roast::Text(name, kMessage) << "roast::" << op << "_aten";
  if (torch_abi::torch_call_dispatcher(name, "", stack, torch_abi::kVersion) ==
      torch_abi::kSuccess) {
    return;
  }
  fail(op, name, " failed: ", torch_abi::last_reason());
}

}  // namespace roast_torch
