// Stands in for libtorch_cpu when libroast_torch is linked; never installed. What it leaves behind
// is the name of the library, which torch has loaded by the time the operators are.
#include "torch_abi.h"

#if defined(_WIN32)
#define STUB_EXPORT __declspec(dllexport)
#else
#define STUB_EXPORT __attribute__((visibility("default")))
#endif

namespace torch_abi {

extern "C" {

#define STUB(NAME, TYPES) \
  STUB_EXPORT int32_t NAME TYPES { return 1; }
TORCH_ABI_FUNCTIONS(STUB)

}  // extern "C"

}  // namespace torch_abi
