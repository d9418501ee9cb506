// The part of torch's stable C ABI that the torch operators use, as torch 2.10 has it; it is kept
// by every later 2.x. torch_abi_check.cc compares all of this with the real headers when
// TORCH_INCLUDE_DIR is given, so that building needs no torch.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct AtenTensorOpaque;
struct StableListOpaque;
struct StringOpaque;
class TorchLibraryOpaque;

namespace torch_abi {

using TensorHandle = AtenTensorOpaque*;
using ListHandle = StableListOpaque*;
using StringHandle = StringOpaque*;
using LibraryHandle = TorchLibraryOpaque*;

// An argument or a result: an integer, the bits of a double, or a handle, which the receiver owns.
// An optional one is null, or a block from operator new that holds the value.
using Value = uint64_t;
using Kernel = void (*)(Value* stack, uint64_t n_arguments, uint64_t n_results);
using Range = void (*)(int64_t begin, int64_t end, void* context);

// The version whose conventions are followed here: major, minor and patch from the top byte down.
constexpr uint64_t kVersion = uint64_t{2} << 56 | uint64_t{10} << 48;
constexpr int32_t kSuccess = 0;

// All of them give an int32_t: an error code, or a number of a device or an element type.
#define TORCH_ABI_FUNCTIONS(F)                                                              \
  F(aoti_torch_device_type_cpu, ())                                                         \
  F(aoti_torch_dtype_bfloat16, ())                                                          \
  F(aoti_torch_dtype_float16, ())                                                           \
  F(aoti_torch_dtype_float32, ())                                                           \
  F(aoti_torch_dtype_float64, ())                                                           \
  F(aoti_torch_dtype_int32, ())                                                             \
  F(aoti_torch_dtype_int64, ())                                                             \
  F(aoti_torch_delete_tensor_object, (TensorHandle))                                        \
  F(aoti_torch_get_device_type, (TensorHandle, int32_t*))                                   \
  F(aoti_torch_get_dtype, (TensorHandle, int32_t*))                                         \
  F(aoti_torch_get_dim, (TensorHandle, int64_t*))                                           \
  F(aoti_torch_get_numel, (TensorHandle, int64_t*))                                         \
  F(aoti_torch_get_sizes, (TensorHandle, int64_t**))                                        \
  F(aoti_torch_is_contiguous, (TensorHandle, bool*))                                        \
  F(aoti_torch_empty_strided,                                                               \
    (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, TensorHandle*))    \
  F(aoti_torch_copy_, (TensorHandle, TensorHandle, int32_t))                                \
  F(aoti_torch_library_init_def, (const char*, const char*, uint32_t, LibraryHandle*))      \
  F(aoti_torch_library_init_fragment, (const char*, const char*, uint32_t, LibraryHandle*)) \
  F(aoti_torch_library_init_impl,                                                           \
    (const char*, const char*, const char*, uint32_t, LibraryHandle*))                      \
  F(aoti_torch_library_def, (LibraryHandle, const char*))                                   \
  F(aoti_torch_delete_library_object, (LibraryHandle))                                      \
  F(torch_library_impl, (LibraryHandle, const char*, Kernel, uint64_t))                     \
  F(torch_call_dispatcher, (const char*, const char*, Value*, uint64_t))                    \
  F(torch_list_size, (ListHandle, size_t*))                                                 \
  F(torch_list_get_item, (ListHandle, size_t, Value*))                                      \
  F(torch_delete_list, (ListHandle))                                                        \
  F(torch_parallel_for, (int64_t, int64_t, int64_t, Range, void*))                          \
  F(torch_get_const_data_ptr, (TensorHandle, const void**))                                 \
  F(torch_get_mutable_data_ptr, (TensorHandle, void**))                                     \
  F(torch_new_string_handle, (const char*, size_t, StringHandle*))                          \
  F(torch_string_c_str, (StringHandle, const char**))                                       \
  F(torch_delete_string, (StringHandle))

extern "C" {

#define TORCH_ABI_DECLARE(NAME, TYPES) int32_t NAME TYPES;
TORCH_ABI_FUNCTIONS(TORCH_ABI_DECLARE)
#undef TORCH_ABI_DECLARE

#if defined(__GNUC__)
// From version 2.13 on; null in older ones.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
#endif

}  // extern "C"

// Why the last function of this thread failed, where torch tells.
inline const char* last_reason() {
#if defined(__GNUC__)
  if (torch_exception_get_what_without_backtrace != nullptr) {
    return torch_exception_get_what_without_backtrace();
  }
#endif
  return "torch gives no reason";
}

}  // namespace torch_abi
