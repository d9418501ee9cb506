// The target is named here, not on the command line: the file builds with the flags of the others.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define ROAST_ISA_AVX2
#include "roast_isa_table.h"

namespace roast {
extern const Isa kIsaAvx2 = isa_table("avx2");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
