// Compiled, never linked into the library: torch_abi.h against torch's own headers. CMake compiles
// it twice: as torch 2.10 declares the functions, and as the installed torch does.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <type_traits>

#include "torch_abi.h"

namespace {

#define CHECK(NAME, TYPES)                                                   \
  static_assert(std::is_same_v<decltype(::NAME), decltype(torch_abi::NAME)>, \
                #NAME " has another signature");
TORCH_ABI_FUNCTIONS(CHECK)

static_assert(std::is_same_v<StableIValue, torch_abi::Value>);
static_assert(std::is_same_v<ParallelFunc, torch_abi::Range>);
static_assert(torch_abi::kVersion == TORCH_VERSION_2_10_0);
static_assert(torch_abi::kSuccess == AOTI_TORCH_SUCCESS);

#ifndef TORCH_TARGET_VERSION
CHECK(torch_exception_get_what_without_backtrace, ())
#endif

}  // namespace
