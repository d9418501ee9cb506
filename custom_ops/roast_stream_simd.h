// Words and signs out of MT19937 states, for the instruction set that the including file names.
#pragma once

#include "roast_elements.h"
#include "roast_mapping.h"
#include "roast_simd.h"

namespace roast {
namespace {

inline void refill(uint32_t* state) { mt_refill(state); }

inline void temper(const uint32_t* words, int64_t n, uint32_t* draws) {
  for (int64_t k = 0; k < n; ++k) draws[k] = mt_temper(words[k]);
}

// n is a multiple of 8.
inline void temper_bits(const uint32_t* words, int64_t n, uint8_t* bits) {
  constexpr int64_t kSome = 64;
  uint32_t draws[kSome] = {};
  for (int64_t k = 0; k < n; k += kSome, bits += kSome / 8) {
    const int64_t some = n - k < kSome ? n - k : kSome;
    temper(words + k, some, draws);
    uint64_t all = 0;
    for (int v = 0; v < kSome; v += V::kLanes) all |= uint64_t{V::low_bits(draws + v)} << v;
    for (int64_t byte = 0; byte < some / 8; ++byte) {
      bits[byte] = static_cast<uint8_t>(all >> 8 * byte);
    }
  }
}

inline void flip(const uint8_t* bits, int64_t first, int64_t n, float* x) {
  int64_t k = 0;
  // Four bytes are read at a time.
  for (; k + 32 <= n; k += V::kLanes) {
    V::store(x + k, V::flip(V::load(x + k), V::minus(bits_at(bits, first + k))));
  }
  ROAST_SHORT
  for (; k < n; ++k) x[k] = negate_if(bit_at(bits, first + k) ^ 1u, x[k]);
}

}  // namespace
}  // namespace roast
