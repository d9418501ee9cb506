// The target is named here, not on the command line: the file builds with the flags of the others.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define ROAST_ISA_AVX512
#include "roast_isa_table.h"

namespace roast {
extern const Isa kIsaAvx512 = isa_table("avx512");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
