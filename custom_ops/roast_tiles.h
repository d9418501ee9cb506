// Elements and pieces of tiles: what an instruction set may do better than portable C++.
#pragma once

#include <stdint.h>

namespace roast {

// ---- Elements ----

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

inline bool finite(float x) {
  Bits bits;
  bits.f = x;
  return (bits.u & 0x7f800000u) != 0x7f800000u;
}

// ---- One tile, in place or transposed. The seam for instruction sets ----

// A piece of a tile: `rows` x `cols` at `in`, whose rows lie `in_stride` apart.
template <class T>
struct Piece {
  const T* in;
  int64_t in_stride, rows, cols;
};

template <class T>
inline void copy_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* from = p.in + r * p.in_stride;
    float* to = out + r * out_stride;
    for (int64_t c = 0; c < p.cols; ++c) to[c] = load(from[c]) * factor;
  }
}

constexpr int64_t kBlock = 4;

// out[c, r] = in[r, c] of a block: whole rows are read and whole runs written, in registers
// between.
template <class T>
inline void transpose_block(const T* in, int64_t in_stride, float factor, float* out,
                            int64_t out_stride) {
  float block[kBlock][kBlock];
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t c = 0; c < kBlock; ++c) block[c][r] = load(in[r * in_stride + c]) * factor;
  }
  for (int64_t c = 0; c < kBlock; ++c) {
    for (int64_t r = 0; r < kBlock; ++r) out[c * out_stride + r] = block[c][r];
  }
}

// out[c, r] = in[r, c]: a tile fits the first cache level, so the writes get the long runs.
template <class T>
inline void transpose_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  const int64_t rows = p.rows / kBlock * kBlock, cols = p.cols / kBlock * kBlock;
  for (int64_t c = 0; c < cols; c += kBlock) {
    for (int64_t r = 0; r < rows; r += kBlock) {
      transpose_block(p.in + r * p.in_stride + c, p.in_stride, factor, out + c * out_stride + r,
                      out_stride);
    }
  }
  for (int64_t c = 0; c < p.cols; ++c) {
    float* to = out + c * out_stride;
    for (int64_t r = c < cols ? rows : 0; r < p.rows; ++r) {
      to[r] = load(p.in[r * p.in_stride + c]) * factor;
    }
  }
}

template <class T>
struct Tiles {
  void (*copy)(const Piece<T>&, float factor, float* out, int64_t out_stride);
  void (*transpose)(const Piece<T>&, float factor, float* out, int64_t out_stride);
};

// The one place where an implementation is chosen.
template <class T>
inline Tiles<T> choose_tiles() {
  return Tiles<T>{copy_piece<T>, transpose_piece<T>};
}

}  // namespace roast
