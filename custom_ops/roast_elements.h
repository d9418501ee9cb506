// Single elements of array and weight, in portable C++.
#pragma once

#include <stdint.h>

namespace roast {

// Internal linkage: code for several instruction sets includes this.
namespace {

union Bits {
  uint32_t u;
  float f;
};

inline float load(float x) { return x; }

// Exact for every float16, without a branch, so that a loop over it vectorises.
inline float load(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t rebias = uint32_t{127 - 15} << 23;
  Bits subnormal, result;
  subnormal.f = static_cast<float>(static_cast<int32_t>(magnitude)) * (1.0f / 16777216.0f);
  const uint32_t normal = (magnitude << 13) + rebias + (magnitude >= 0x7c00u ? rebias : 0u);
  result.u = (magnitude < 0x400u ? subnormal.u : normal) | (half & 0x8000u) << 16;
  return result.f;
}

// -x where `bit` is 1, x where it is 0: signs are random, and a branch on them would be too.
inline float negate_if(uint32_t bit, float x) {
  Bits bits;
  bits.f = x;
  bits.u ^= bit << 31;
  return bits.f;
}

// Bits `at` and after, at least 25 of them, of which the lowest is the first.
inline uint32_t bits_at(const uint8_t* bits, int64_t at) {
  uint32_t word;
  __builtin_memcpy(&word, bits + (at >> 3), sizeof word);
  return word >> (at & 7);
}

inline uint32_t bit_at(const uint8_t* bits, int64_t at) {
  return static_cast<uint32_t>(bits[at >> 3]) >> (at & 7) & 1u;
}

inline bool finite(float x) {
  Bits bits;
  bits.f = x;
  return (bits.u & 0x7f800000u) != 0x7f800000u;
}

}  // namespace
}  // namespace roast
