// See torch_value.h.
#include "torch_value.h"

using namespace torch_abi;

namespace roast_torch {

void inspect(const char* op, const char* name, Tensor* tensor) {
  AtenTensorOpaque* const handle = tensor->handle.get();
  if (handle == nullptr) fail(op, name, " is missing");
  int32_t device = 0;
  int64_t* sizes = nullptr;
  check(op, aoti_torch_get_device_type(handle, &device));
  if (device != aoti_torch_device_type_cpu()) fail(op, name, " is not on the CPU; move it there");
  check(op, aoti_torch_get_dtype(handle, &tensor->type));
  check(op, aoti_torch_get_dim(handle, &tensor->rank));
  check(op, aoti_torch_get_numel(handle, &tensor->numel));
  check(op, aoti_torch_get_sizes(handle, &sizes));
  tensor->sizes = sizes;
  if (tensor->rank > kMaxRank) {
    fail(op, name, " has ", tensor->rank, " dimensions, at most ", kMaxRank, " are supported");
  }
}

Tensor empty(const char* op, const int64_t* sizes, int64_t rank, int32_t type) {
  int64_t strides[kMaxRank];
  // Unsigned: beside a size of 0 the others may be so large that their product wraps.
  uint64_t stride = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    strides[d] = static_cast<int64_t>(stride);
    stride *= sizes[d] > 1 ? static_cast<uint64_t>(sizes[d]) : 1;
  }
  AtenTensorOpaque* handle = nullptr;
  check(op, aoti_torch_empty_strided(rank, sizes, strides, type, aoti_torch_device_type_cpu(), -1,
                                     &handle));
  return Tensor(as_value(handle));
}

Tensor plain(const char* op, Tensor tensor, int32_t type) {
  bool contiguous = false;
  check(op, aoti_torch_is_contiguous(tensor.handle.get(), &contiguous));
  if (contiguous && tensor.type == type) return tensor;
  Tensor copy = empty(op, tensor.sizes, tensor.rank, type);
  check(op, aoti_torch_copy_(copy.handle.get(), tensor.handle.get(), 0));
  inspect(op, "a copy", &copy);
  return copy;
}

}  // namespace roast_torch
