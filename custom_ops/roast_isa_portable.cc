// Whatever the target of the build has.
#define ROAST_ISA_PORTABLE
#include "roast_isa_table.h"

namespace roast {
extern const Isa kIsaPortable = isa_table("portable");
}
