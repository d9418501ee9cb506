// Copies of tiles, for the instruction set that the including file names. All instruction sets
// give the same bits: each element is one product.
#pragma once

#include "roast_elements.h"
#include "roast_isa.h"
#include "roast_mapping.h"
#include "roast_simd.h"

namespace roast {
namespace {

template <class T>
void copy_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  const V::Reg f = V::set1(factor);
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* from = p.in + r * p.in_stride;
    float* to = out + r * out_stride;
    int64_t c = 0;
    for (; c + V::kLanes <= p.cols; c += V::kLanes) {
      V::store(to + c, V::mul(V::load(from + c), f));
    }
    for (; c < p.cols; ++c) to[c] = load(from[c]) * factor;
  }
}

template <class T>
void copy_runs(const T* memory, const uint32_t* packed, int64_t n, int64_t across, int64_t length,
               float factor, float* out) {
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t j = 0; j < across; ++j, out += length) {
      const uint32_t start = packed[j * n + k];
      const Piece<T> run{memory + (start & ~kNegative), 0, 1, length};
      copy_piece(run, negate_if(start >> 31, factor), out, 0);
    }
  }
}

inline void column_starts(const Column& column, const int64_t* ids, int64_t origin, int64_t n,
                          uint32_t* packed) {
  const Column local = column;
  for (int64_t k = 0; k < n; ++k) {
    packed[k] = start_of_row(local, static_cast<uint64_t>(ids[k] + origin));
  }
}

// One block of kLanes x kLanes, of which `n` rows are there: whole rows are read and whole runs
// written, in registers between.
template <bool kWhole, class T>
inline void transpose_block(const T* in, int64_t in_stride, int64_t n, V::Reg factor, float* out,
                            int64_t out_stride) {
  V::Reg block[V::kLanes];
  for (int k = 0; k < V::kLanes; ++k) {
    block[k] = kWhole || k < n ? V::mul(V::load(in + k * in_stride), factor) : V::zero();
  }
  V::transpose(block);
  for (int k = 0; k < V::kLanes; ++k) {
    float* to = out + k * out_stride;
    if (kWhole) {
      V::store(to, block[k]);
    } else {
      V::store_first(to, block[k], n);
    }
  }
}

// out[c, r] = in[r, c]: a tile fits the first cache level, so the writes get the long runs.
template <class T>
void transpose_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  const V::Reg f = V::set1(factor);
  int64_t c = 0;
  for (; c + V::kLanes <= p.cols; c += V::kLanes) {
    const T* in = p.in + c;
    float* to = out + c * out_stride;
    int64_t r = 0;
    for (; r + V::kLanes <= p.rows; r += V::kLanes) {
      transpose_block<true>(in + r * p.in_stride, p.in_stride, V::kLanes, f, to + r, out_stride);
    }
    if (r == p.rows) continue;
    transpose_block<false>(in + r * p.in_stride, p.in_stride, p.rows - r, f, to + r, out_stride);
  }
  for (; c < p.cols; ++c) {
    for (int64_t r = 0; r < p.rows; ++r) {
      out[c * out_stride + r] = load(p.in[r * p.in_stride + c]) * factor;
    }
  }
}

}  // namespace
}  // namespace roast
