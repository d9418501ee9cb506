// What the torch operators share: errors, arguments with their owners, new tensors.
#pragma once

#include <memory>
#include <stdexcept>

#include "roast_mapping.h"
#include "roast_text.h"
#include "torch_abi.h"

namespace roast_torch {

using torch_abi::Value;

// ---- Errors ----

constexpr size_t kMessage = 512;

// "roast::op: " and the parts, in buffer[kMessage].
template <class... Parts>
const char* compose(char* buffer, const char* op, const Parts&... parts) {
  roast::Text text(buffer, kMessage);
  text << "roast::" << op << ": ";
  (text << ... << parts);
  return buffer;
}

// RuntimeError in Python.
template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  char buffer[kMessage];
  throw std::runtime_error(compose(buffer, op, parts...));
}

// IndexError in Python.
template <class... Parts>
[[noreturn]] void fail_index(const char* op, const Parts&... parts) {
  char buffer[kMessage];
  throw std::out_of_range(compose(buffer, op, parts...));
}

inline void check(const char* op, int32_t code) {
  if (code != torch_abi::kSuccess) fail(op, torch_abi::last_reason());
}

// ---- Values ----

template <class T>
T value_as(Value value) {
  static_assert(sizeof(T) == sizeof(Value));
  T typed;
  __builtin_memcpy(&typed, &value, sizeof value);
  return typed;
}

template <class T>
Value as_value(T typed) {
  static_assert(sizeof(T) == sizeof(Value));
  Value value;
  __builtin_memcpy(&value, &typed, sizeof value);
  return value;
}

struct Delete {
  void operator()(AtenTensorOpaque* tensor) const {
    torch_abi::aoti_torch_delete_tensor_object(tensor);
  }
  void operator()(StableListOpaque* list) const { torch_abi::torch_delete_list(list); }
  void operator()(StringOpaque* string) const { torch_abi::torch_delete_string(string); }
};

// An argument belongs to the operator from its first line on, whatever is wrong with the others.
template <class T>
struct Owned : std::unique_ptr<T, Delete> {
  using std::unique_ptr<T, Delete>::unique_ptr;
  explicit Owned(Value value) : std::unique_ptr<T, Delete>(value_as<T*>(value)) {}
};

using List = Owned<StableListOpaque>;

// ---- Tensors ----

struct Tensor {
  explicit Tensor(Value value) : handle(value) {}
  Tensor() = default;

  Value release() { return as_value(handle.release()); }

  Owned<AtenTensorOpaque> handle;
  // Known once `inspect` was here.
  int32_t type = -1;
  int64_t rank = 0, numel = 0;
  const int64_t* sizes = nullptr;
};

// An argument `Tensor?`; without a handle if it is None.
inline Tensor take_optional(Value value) {
  Value* const block = value_as<Value*>(value);
  if (block == nullptr) return Tensor();
  Tensor tensor(*block);
  delete block;
  return tensor;
}

// As many dimensions as a tensor of torch can be indexed in.
constexpr int64_t kMaxRank = 64;

// Element types, by torch's numbers.
struct Types {
  const int32_t float32 = torch_abi::aoti_torch_dtype_float32();
  const int32_t float16 = torch_abi::aoti_torch_dtype_float16();
  const int32_t float64 = torch_abi::aoti_torch_dtype_float64();
  const int32_t bfloat16 = torch_abi::aoti_torch_dtype_bfloat16();
  const int32_t int32 = torch_abi::aoti_torch_dtype_int32();
  const int32_t int64 = torch_abi::aoti_torch_dtype_int64();

  bool floating(int32_t type) const {
    return type == float32 || type == float16 || type == float64 || type == bfloat16;
  }
};

inline const Types& types() {
  static const Types all;
  return all;
}

// Reads what the fields of a tensor say.
void inspect(const char* op, const char* name, Tensor* tensor);

// Uninitialised, contiguous, and not inspected.
Tensor empty(const char* op, const int64_t* sizes, int64_t rank, int32_t type);

// Of the type and contiguous: the same tensor, or a copy.
Tensor plain(const char* op, Tensor tensor, int32_t type);

// Of an inspected tensor.
template <class T>
const T* elements(const char* op, const Tensor& tensor) {
  const void* data = nullptr;
  check(op, torch_abi::torch_get_const_data_ptr(tensor.handle.get(), &data));
  if (data == nullptr && tensor.numel > 0) fail(op, "a tensor has lost its storage");
  return static_cast<const T*>(data);
}

inline float* mutable_floats(const char* op, const Tensor& tensor) {
  void* data = nullptr;
  check(op, torch_abi::torch_get_mutable_data_ptr(tensor.handle.get(), &data));
  return static_cast<float*>(data);
}

}  // namespace roast_torch
