// Every 64-bit ARM processor has these instructions.
#if defined(__aarch64__)
#define ROAST_ISA_NEON
#include "roast_isa_table.h"

namespace roast {
extern const Isa kIsaNeon = isa_table("neon");
}
#endif
