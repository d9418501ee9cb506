// Vectors of the instruction set that the including file names (ROAST_ISA_*). Everything here has
// internal linkage: two instruction sets must never share a function.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "roast_elements.h"

#if defined(ROAST_ISA_AVX512) || defined(ROAST_ISA_AVX2)
#include <immintrin.h>
#elif defined(ROAST_ISA_NEON)
#include <arm_neon.h>
#endif

// For what must not be a call: gcc drops a call that does nothing but fetch ahead.
#define ROAST_INLINE inline __attribute__((always_inline))

// Before loops over registers: gcc keeps arrays of them in memory unless it unrolls the loops
// early. ROAST_SHORT: before loops over what is left, of which compilers make vectors once more.
#if defined(__clang__)
#define ROAST_UNROLL
#define ROAST_SHORT _Pragma("clang loop vectorize(disable) unroll(disable)")
#else
#define ROAST_UNROLL _Pragma("GCC unroll 16")
#define ROAST_SHORT
#endif

namespace roast {
namespace {

#if defined(ROAST_ISA_AVX512)

struct V {
  using Reg = __m512;
  using Mask = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 12, kGroups = 2, kTileRows = 4, kDotRows = 4;
  static constexpr __mmask16 kAll = 0xffff;
  static constexpr bool kLoadsHalf = true;
  static constexpr bool kStreams = true;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const uint16_t* p) {
    // With a mask: gcc 12 warns of its own header where the plain form is used.
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static void stream(float* p, Reg x) { _mm512_stream_ps(p, x); }
  static void fence() { _mm_sfence(); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Mask mask(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static Reg flip(Reg x, Mask m) {
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), m));
  }
  static Mask minus(uint32_t bits) {
    return _mm512_maskz_set1_epi32(static_cast<__mmask16>(~bits), INT32_MIN);
  }
  static uint32_t low_bits(const uint32_t* p) {
    return _mm512_test_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(1));
  }
  static float sum(Reg x) {
    x = _mm512_add_ps(x, _mm512_maskz_shuffle_f32x4(kAll, x, x, 0x4e));
    x = _mm512_add_ps(x, _mm512_maskz_shuffle_f32x4(kAll, x, x, 0xb1));
    x = _mm512_add_ps(x, _mm512_maskz_permute_ps(kAll, x, 0x4e));
    x = _mm512_add_ps(x, _mm512_maskz_permute_ps(kAll, x, 0xb1));
    return _mm512_cvtss_f32(x);
  }
  static void store_first(float* p, Reg x, int64_t n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
  }
  static Reg low(Reg a, Reg b) { return _mm512_maskz_unpacklo_ps(kAll, a, b); }
  static Reg high(Reg a, Reg b) { return _mm512_maskz_unpackhi_ps(kAll, a, b); }
  template <int kPick>
  static Reg pick(Reg a, Reg b) {
    return _mm512_maskz_shuffle_f32x4(kAll, a, b, kPick);
  }
  static Reg even(Reg a, Reg b) { return _mm512_maskz_shuffle_ps(kAll, a, b, 0x44); }
  static Reg odd(Reg a, Reg b) { return _mm512_maskz_shuffle_ps(kAll, a, b, 0xee); }
  // Rows become columns: first in blocks of 4 x 4, then the blocks.
  static void transpose(Reg (&x)[16]) {
    Reg y[16];
    for (int k = 0; k < 16; k += 4) {
      const Reg a = low(x[k], x[k + 1]), b = high(x[k], x[k + 1]);
      const Reg c = low(x[k + 2], x[k + 3]), d = high(x[k + 2], x[k + 3]);
      y[k] = even(a, c);
      y[k + 1] = odd(a, c);
      y[k + 2] = even(b, d);
      y[k + 3] = odd(b, d);
    }
    for (int k = 0; k < 4; ++k) {
      const Reg a = pick<0x88>(y[k], y[k + 4]), b = pick<0xdd>(y[k], y[k + 4]);
      const Reg c = pick<0x88>(y[k + 8], y[k + 12]), d = pick<0xdd>(y[k + 8], y[k + 12]);
      x[k] = pick<0x88>(a, c);
      x[k + 4] = pick<0x88>(b, d);
      x[k + 8] = pick<0xdd>(a, c);
      x[k + 12] = pick<0xdd>(b, d);
    }
  }
  static ROAST_INLINE void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
  // gcc reads what two products need twice, and loads are what such kernels wait for.
  static ROAST_INLINE void hold(Reg* x) { __asm__("" : "+v"(*x)); }
};

#elif defined(ROAST_ISA_AVX2)

struct V {
  using Reg = __m256;
  using Mask = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 6, kGroups = 1, kTileRows = 4, kDotRows = 2;
  static constexpr bool kLoadsHalf = true;
  static constexpr bool kStreams = true;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static void stream(float* p, Reg x) { _mm256_stream_ps(p, x); }
  static void fence() { _mm_sfence(); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Mask mask(uint32_t bits) {
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(bits)));
  }
  static Reg flip(Reg x, Mask m) { return _mm256_xor_ps(x, m); }
  static Mask minus(uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
    const __m256i off = _mm256_cmpeq_epi32(set, _mm256_setzero_si256());
    return _mm256_castsi256_ps(_mm256_slli_epi32(off, 31));
  }
  static uint32_t low_bits(const uint32_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const int top = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(x, 31)));
    return static_cast<uint32_t>(top);
  }
  static float sum(Reg x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static void store_first(float* p, Reg x, int64_t n) {
    __m128 rest = _mm256_castps256_ps128(x);
    if (n >= 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(x, 1);
      p += 4;
    }
    if ((n & 2) != 0) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if ((n & 1) != 0) _mm_store_ss(p, rest);
  }
  static void transpose(Reg (&x)[8]) {
    Reg y[8];
    for (int k = 0; k < 8; k += 4) {
      const Reg a = _mm256_unpacklo_ps(x[k], x[k + 1]), b = _mm256_unpackhi_ps(x[k], x[k + 1]);
      const Reg c = _mm256_unpacklo_ps(x[k + 2], x[k + 3]);
      const Reg d = _mm256_unpackhi_ps(x[k + 2], x[k + 3]);
      y[k] = _mm256_shuffle_ps(a, c, 0x44);
      y[k + 1] = _mm256_shuffle_ps(a, c, 0xee);
      y[k + 2] = _mm256_shuffle_ps(b, d, 0x44);
      y[k + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int k = 0; k < 4; ++k) {
      x[k] = _mm256_permute2f128_ps(y[k], y[k + 4], 0x20);
      x[k + 4] = _mm256_permute2f128_ps(y[k], y[k + 4], 0x31);
    }
  }
  static ROAST_INLINE void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }
  // gcc reads what two products need twice, and loads are what such kernels wait for.
  static ROAST_INLINE void hold(Reg* x) { __asm__("" : "+v"(*x)); }
};

#elif defined(ROAST_ISA_NEON)

struct V {
  using Reg = float32x4_t;
  using Mask = uint32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kRows = 6, kGroups = 1, kTileRows = 4, kDotRows = 4;
  static constexpr bool kLoadsHalf = true;
  static constexpr bool kStreams = false;

  static Reg zero() { return vdupq_n_f32(0.0f); }
  static Reg set1(float x) { return vdupq_n_f32(x); }
  static Reg load(const float* p) { return vld1q_f32(p); }
  static Reg load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void store(float* p, Reg x) { vst1q_f32(p, x); }
  static void stream(float* p, Reg x) { store(p, x); }
  static void fence() {}
  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Mask mask(uint32_t bits) { return vdupq_n_u32(bits); }
  static Reg flip(Reg x, Mask m) {
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), m));
  }
  static Mask lane_bits() { return Mask{1, 2, 4, 8}; }
  static Mask minus(uint32_t bits) {
    return vshlq_n_u32(vceqzq_u32(vandq_u32(vdupq_n_u32(bits), lane_bits())), 31);
  }
  static uint32_t low_bits(const uint32_t* p) {
    const Mask low = vandq_u32(vld1q_u32(p), vdupq_n_u32(1));
    return vaddvq_u32(vmulq_u32(low, lane_bits()));
  }
  static float sum(Reg x) { return vaddvq_f32(x); }
  static void store_first(float* p, Reg x, int64_t n) {
    if (n >= 2) vst1_f32(p, vget_low_f32(x));
    if (n == 3) vst1q_lane_f32(p + 2, x, 2);
    if (n == 1) vst1q_lane_f32(p, x, 0);
  }
  static Reg pairs(Reg a, Reg b, bool second) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(second ? vtrn2q_f64(x, y) : vtrn1q_f64(x, y));
  }
  static void transpose(Reg (&x)[4]) {
    const Reg a = vtrn1q_f32(x[0], x[1]), b = vtrn2q_f32(x[0], x[1]);
    const Reg c = vtrn1q_f32(x[2], x[3]), d = vtrn2q_f32(x[2], x[3]);
    x[0] = pairs(a, c, false);
    x[1] = pairs(b, d, false);
    x[2] = pairs(a, c, true);
    x[3] = pairs(b, d, true);
  }
  static ROAST_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
  static ROAST_INLINE void hold(Reg*) {}
};

#else

// The compiler's own vectors: SSE2, WebAssembly SIMD or plain registers, whatever the target has.
struct V {
  typedef float Reg __attribute__((vector_size(16)));
  typedef uint32_t Mask __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRows = 3, kGroups = 1, kTileRows = 0, kDotRows = 2;
  static constexpr bool kLoadsHalf = false;
  static constexpr bool kStreams = false;

  static Reg zero() { return Reg{0, 0, 0, 0}; }
  static Reg set1(float x) { return Reg{x, x, x, x}; }
  static Reg load(const float* p) {
    Reg x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static float wide(uint16_t half) { return roast::load(half); }
  static Reg load(const uint16_t* p) { return Reg{wide(p[0]), wide(p[1]), wide(p[2]), wide(p[3])}; }
  static void store(float* p, Reg x) { __builtin_memcpy(p, &x, sizeof x); }
  static void stream(float* p, Reg x) { store(p, x); }
  static void fence() {}
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Mask mask(uint32_t bits) { return Mask{bits, bits, bits, bits}; }
  static Reg flip(Reg x, Mask m) { return reinterpret_cast<Reg>(reinterpret_cast<Mask>(x) ^ m); }
  static Mask minus(uint32_t bits) {
    const uint32_t off = ~bits;
    return Mask{off << 31, off >> 1 << 31, off >> 2 << 31, off >> 3 << 31};
  }
  static uint32_t low_bits(const uint32_t* p) {
    return (p[0] & 1u) | (p[1] & 1u) << 1 | (p[2] & 1u) << 2 | (p[3] & 1u) << 3;
  }
  static float sum(Reg x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static void store_first(float* p, Reg x, int64_t n) {
    for (int64_t k = 0; k < n; ++k) p[k] = x[k];
  }
  static void transpose(Reg (&x)[4]) {
    const Reg a = x[0], b = x[1], c = x[2], d = x[3];
    x[0] = Reg{a[0], b[0], c[0], d[0]};
    x[1] = Reg{a[1], b[1], c[1], d[1]};
    x[2] = Reg{a[2], b[2], c[2], d[2]};
    x[3] = Reg{a[3], b[3], c[3], d[3]};
  }
  static ROAST_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
  static ROAST_INLINE void hold(Reg*) {}
};

#endif

// The first n lanes of a register, 0 in the others.
template <class T>
inline V::Reg load_first(const T* p, int64_t n) {
  if (n >= V::kLanes) return V::load(p);
  T part[V::kLanes] = {};
  for (int64_t k = 0; k < n; ++k) part[k] = p[k];
  return V::load(part);
}

}  // namespace
}  // namespace roast
