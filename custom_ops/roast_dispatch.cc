// The one place where an instruction set is chosen.
#include "roast_isa.h"
#include "roast_kernel.h"

namespace roast {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf) {
  Registers r{leaf, 0, 0, 0};
  __asm__("cpuid" : "+a"(r.a), "=b"(r.b), "+c"(r.c), "=d"(r.d));
  return r;
}

// Registers that the operating system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512.
uint32_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

inline bool all(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

uint32_t probe() {
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr uint32_t kAvx2 = 1u << 5, kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  uint32_t found = 1u << ROAST_ISA_PORTABLE;
  if (cpuid(0).a < 7 || !all(cpuid(1).c, kFma | kOsxsave | kAvx | kF16c)) return found;
  const uint32_t features = cpuid(7).b, state = saved_state();
  if (!all(state, 0x6) || !all(features, kAvx2)) return found;
  found |= 1u << ROAST_ISA_AVX2;
  if (all(state, 0xe6) && all(features, kF | kDq | kBw | kVl)) found |= 1u << ROAST_ISA_AVX512;
  return found;
}

#elif defined(ROAST_NEON_ONLY)

// Every 64-bit ARM has it: a library for phones leaves out what would never run.
uint32_t probe() { return 1u << ROAST_ISA_NEON; }

#elif defined(__aarch64__)

uint32_t probe() { return 1u << ROAST_ISA_PORTABLE | 1u << ROAST_ISA_NEON; }

#else

uint32_t probe() { return 1u << ROAST_ISA_PORTABLE; }

#endif

// Asked once: in a virtual machine each question takes longer than a small layer.
uint32_t detect() {
  static uint32_t found = 0;
  uint32_t answer = __atomic_load_n(&found, __ATOMIC_RELAXED);
  if (answer == 0) {
    answer = probe();
    __atomic_store_n(&found, answer, __ATOMIC_RELAXED);
  }
  return answer;
}

const Isa* table_of(int isa) {
  switch (isa) {
#if defined(__x86_64__)
    case ROAST_ISA_AVX2:
      return &kIsaAvx2;
    case ROAST_ISA_AVX512:
      return &kIsaAvx512;
#elif defined(__aarch64__)
    case ROAST_ISA_NEON:
      return &kIsaNeon;
#endif
    default:
#if defined(ROAST_NEON_ONLY)
      return &kIsaNeon;
#else
      return &kIsaPortable;
#endif
  }
}

// For tests: ROAST_ISA_BEST, or the one that was asked for.
int g_forced = ROAST_ISA_BEST;

}  // namespace

const Isa& chosen_isa() {
  int isa = __atomic_load_n(&g_forced, __ATOMIC_RELAXED);
  if (isa == ROAST_ISA_BEST) {
    const uint32_t found = detect();
    for (isa = ROAST_ISA_COUNT - 1; (found >> isa & 1u) == 0;) --isa;
  }
  return *table_of(isa);
}

}  // namespace roast

extern "C" {

uint32_t roast_available_isas(void) { return roast::detect(); }

int roast_force_isa(int isa) {
  const bool known = isa >= 0 && isa < ROAST_ISA_COUNT && (roast::detect() >> isa & 1u) == 1;
  if (!known && isa != ROAST_ISA_BEST) return 1;
  __atomic_store_n(&roast::g_forced, isa, __ATOMIC_RELAXED);
  return 0;
}

}  // extern "C"
