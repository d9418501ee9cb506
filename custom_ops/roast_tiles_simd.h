// Copies of tiles, for the instruction set that the including file names. All instruction sets
// give the same bits: each element is one product.
#pragma once

#include "roast_elements.h"
#include "roast_isa.h"
#include "roast_mapping.h"
#include "roast_simd.h"

namespace roast {
namespace {

// kLanes elements of a row, with their signs and the factor.
template <bool kSigned, class T>
inline V::Reg signed_product(const T* from, const Signs& signs, int64_t at, V::Reg factor) {
  const V::Reg x = V::mul(V::load(from), factor);
  return kSigned ? V::flip(x, V::minus(bits_at(signs.bits, at))) : x;
}

// The same for one element.
template <bool kSigned, class T>
inline float signed_product(T from, const Signs& signs, int64_t at, float factor) {
  const float x = load(from) * factor;
  return kSigned ? negate_if(bit_at(signs.bits, at) ^ 1u, x) : x;
}

// Columns [*c, ...) in strips of kVectors vectors, as many as there are: without a loop inside a
// row, for rows of tiles are short.
template <int kVectors, bool kSigned, class T>
inline void copy_strips(const Piece<T>& p, V::Reg factor, float* out, int64_t out_stride,
                        int64_t* c) {
  for (; *c + kVectors * V::kLanes <= p.cols; *c += kVectors * V::kLanes) {
    const T* from = p.in + *c;
    float* to = out + *c;
    int64_t at = p.signs.first + *c;
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int v = 0; v < kVectors * V::kLanes; v += V::kLanes) {
        V::store(to + v, signed_product<kSigned>(from + v, p.signs, at + v, factor));
      }
      from += p.in_stride;
      to += out_stride;
      at += p.signs.stride;
    }
  }
}

template <bool kSigned, class T>
void copy_rows(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  const V::Reg f = V::set1(factor);
  int64_t c = 0;
  copy_strips<8, kSigned>(p, f, out, out_stride, &c);
  copy_strips<2, kSigned>(p, f, out, out_stride, &c);
  copy_strips<1, kSigned>(p, f, out, out_stride, &c);
  for (int64_t r = 0; c < p.cols && r < p.rows; ++r) {
    const T* from = p.in + r * p.in_stride;
    const int64_t at = p.signs.first + r * p.signs.stride;
    ROAST_SHORT
    for (int64_t k = c; k < p.cols; ++k) {
      out[r * out_stride + k] = signed_product<kSigned>(from[k], p.signs, at + k, factor);
    }
  }
}

template <class T>
void copy_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  if (p.signs.bits != nullptr) return copy_rows<true>(p, factor, out, out_stride);
  copy_rows<false>(p, factor, out, out_stride);
}

// A piece past the caches: nothing of it is read first, and nothing else is thrown out for it.
inline void stream_piece(const Piece<float>& p, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* from = p.in + r * p.in_stride;
    float* to = out + r * out_stride;
    int64_t c = 0;
    ROAST_SHORT
    for (; c < p.cols && reinterpret_cast<uintptr_t>(to + c) % 64 != 0; ++c) to[c] = from[c];
    for (; c + V::kLanes <= p.cols; c += V::kLanes) V::stream(to + c, V::load(from + c));
    ROAST_SHORT
    for (; c < p.cols; ++c) to[c] = from[c];
  }
  V::fence();
}

// Fetched so many rows before it is read.
constexpr int64_t kAhead = 16;

template <class T>
ROAST_INLINE void fetch_ahead(const T* memory, const uint32_t* packed, int64_t k, int64_t n,
                              int64_t length) {
  const T* const run = memory + (packed[k + kAhead < n ? k + kAhead : k] & ~kNegative);
  for (int64_t c = 0; c < length; c += kGroup) V::prefetch(run + c);
}

template <class T>
inline void copy_any_runs(const T* memory, const uint32_t* packed, int64_t n, int64_t across,
                          int64_t length, float factor, float* out) {
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t j = 0; j < across; ++j, out += length) {
      fetch_ahead(memory, packed + j * n, k, n, length);
      const uint32_t start = packed[j * n + k];
      const Piece<T> run{memory + (start & ~kNegative), 0, 1, length};
      copy_piece(run, negate_if(start >> 31, factor), out, 0);
    }
  }
}

// Runs of kVectors vectors: no questions on the way.
template <int kVectors, class T>
inline void copy_even_runs(const T* memory, const uint32_t* packed, int64_t n, int64_t across,
                           float factor, float* out) {
  constexpr int kLength = kVectors * V::kLanes;
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t j = 0; j < across; ++j, out += kLength) {
      fetch_ahead(memory, packed + j * n, k, n, kLength);
      const uint32_t start = packed[j * n + k];
      const T* const from = memory + (start & ~kNegative);
      const V::Reg f = V::flip(V::set1(factor), V::mask(start & kNegative));
      for (int v = 0; v < kLength; v += V::kLanes) {
        V::store(out + v, V::mul(V::load(from + v), f));
      }
    }
  }
}

template <class T>
void copy_runs(const T* memory, const uint32_t* packed, int64_t n, int64_t across, int64_t length,
               float factor, float* out) {
  if (kFar && length == kGroup) {
    copy_even_runs<kGroup / V::kLanes>(memory, packed, n, across, factor, out);
  } else if (kFar && length == 2 * kGroup) {
    copy_even_runs<2 * kGroup / V::kLanes>(memory, packed, n, across, factor, out);
  } else {
    copy_any_runs(memory, packed, n, across, length, factor, out);
  }
}

inline void column_starts(const Column& column, const int64_t* ids, int64_t origin, int64_t n,
                          uint32_t* packed) {
  const Column local = column;
  for (int64_t k = 0; k < n; ++k) {
    packed[k] = start_of_row(local, static_cast<uint64_t>(ids[k] + origin));
  }
}

// One block of kLanes x kLanes from (r, c) on, of which `n` rows are there: whole rows are read and
// whole runs written, in registers between.
template <bool kWhole, bool kSigned, class T>
inline void transpose_block(const Piece<T>& p, int64_t r, int64_t c, int64_t n, V::Reg factor,
                            float* out, int64_t out_stride) {
  const T* in = p.in + r * p.in_stride + c;
  const int64_t at = p.signs.first + r * p.signs.stride + c;
  V::Reg block[V::kLanes];
  for (int k = 0; k < V::kLanes; ++k) {
    block[k] = kWhole || k < n ? signed_product<kSigned>(in + k * p.in_stride, p.signs,
                                                         at + k * p.signs.stride, factor)
                               : V::zero();
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
template <bool kSigned, class T>
void transpose_rows(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  const V::Reg f = V::set1(factor);
  int64_t c = 0;
  for (; c + V::kLanes <= p.cols; c += V::kLanes) {
    float* to = out + c * out_stride;
    int64_t r = 0;
    for (; r + V::kLanes <= p.rows; r += V::kLanes) {
      transpose_block<true, kSigned>(p, r, c, V::kLanes, f, to + r, out_stride);
    }
    if (r == p.rows) continue;
    transpose_block<false, kSigned>(p, r, c, p.rows - r, f, to + r, out_stride);
  }
  for (; c < p.cols; ++c) {
    ROAST_SHORT
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t at = p.signs.first + r * p.signs.stride + c;
      out[c * out_stride + r] =
          signed_product<kSigned>(p.in[r * p.in_stride + c], p.signs, at, factor);
    }
  }
}

template <class T>
void transpose_piece(const Piece<T>& p, float factor, float* out, int64_t out_stride) {
  if (p.signs.bits != nullptr) return transpose_rows<true>(p, factor, out, out_stride);
  transpose_rows<false>(p, factor, out, out_stride);
}

// kLanes outputs from k on and `n` inputs from c on.
template <bool kWhole, bool kSigned, class T>
inline void turn_block(const Strip<T>& s, int k, int64_t c, int64_t n, float* out,
                       int64_t out_stride) {
  V::Reg block[V::kLanes];
  for (int v = 0; v < V::kLanes; ++v) {
    const T* row = s.row[k + v] + c;
    const V::Reg x = V::flip(kWhole ? V::load(row) : load_first(row, n), V::mask(s.sign[k + v]));
    block[v] = kSigned ? V::flip(x, V::minus(bits_at(s.bits, s.bit[k + v] + c))) : x;
  }
  V::transpose(block);
  for (int v = 0; v < V::kLanes; ++v) {
    if (kWhole || v < n) V::store(out + v * out_stride, block[v]);
  }
}

template <bool kSigned, class T>
inline void turn_rows(const Strip<T>& s, float* out, int64_t out_stride) {
  for (int k = 0; k < kGroup; k += V::kLanes) {
    float* to = out + k;
    int64_t c = 0;
    for (; c + V::kLanes <= s.cols; c += V::kLanes, to += V::kLanes * out_stride) {
      turn_block<true, kSigned>(s, k, c, V::kLanes, to, out_stride);
    }
    if (c < s.cols) turn_block<false, kSigned>(s, k, c, s.cols - c, to, out_stride);
  }
}

template <class T>
void turn_strip(const Strip<T>& s, float* out, int64_t out_stride) {
  if (s.bits != nullptr) return turn_rows<true>(s, out, out_stride);
  turn_rows<false>(s, out, out_stride);
}

// ---- The adjoints ----

template <bool kSigned>
inline void add_rows(const Slots& s, float factor, const float* grad, int64_t grad_stride) {
  const V::Reg f = V::set1(factor);
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* from = grad + r * grad_stride;
    float* to = s.sums + r * s.stride;
    const int64_t at = s.signs.first + r * s.signs.stride;
    int64_t c = 0;
    for (; c + V::kLanes <= s.cols; c += V::kLanes) {
      const V::Reg x = signed_product<kSigned>(from + c, s.signs, at + c, f);
      V::store(to + c, V::add(V::load(to + c), x));
    }
    ROAST_SHORT
    for (; c < s.cols; ++c) to[c] += signed_product<kSigned>(from[c], s.signs, at + c, factor);
  }
}

inline void add_piece(const Slots& s, float factor, const float* grad, int64_t grad_stride) {
  if (s.signs.bits != nullptr) return add_rows<true>(s, factor, grad, grad_stride);
  add_rows<false>(s, factor, grad, grad_stride);
}

// kLanes columns of `n` rows from (r, c) on: read as runs of grad, added as runs of sums.
template <bool kSigned>
inline void add_transposed_block(const Slots& s, int64_t r, int64_t c, V::Reg factor,
                                 const float* grad, int64_t grad_stride) {
  const int64_t n = s.rows - r;
  V::Reg block[V::kLanes];
  for (int k = 0; k < V::kLanes; ++k) {
    block[k] = V::mul(load_first(grad + (c + k) * grad_stride + r, n), factor);
  }
  V::transpose(block);
  for (int k = 0; k < V::kLanes && k < n; ++k) {
    float* to = s.sums + (r + k) * s.stride + c;
    const int64_t at = s.signs.first + (r + k) * s.signs.stride + c;
    const V::Reg x = kSigned ? V::flip(block[k], V::minus(bits_at(s.signs.bits, at))) : block[k];
    V::store(to, V::add(V::load(to), x));
  }
}

template <bool kSigned>
inline void add_columns(const Slots& s, float factor, const float* grad, int64_t grad_stride) {
  const V::Reg f = V::set1(factor);
  int64_t c = 0;
  for (; c + V::kLanes <= s.cols; c += V::kLanes) {
    for (int64_t r = 0; r < s.rows; r += V::kLanes) {
      add_transposed_block<kSigned>(s, r, c, f, grad, grad_stride);
    }
  }
  for (; c < s.cols; ++c) {
    ROAST_SHORT
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t at = s.signs.first + r * s.signs.stride + c;
      s.sums[r * s.stride + c] +=
          signed_product<kSigned>(grad[c * grad_stride + r], s.signs, at, factor);
    }
  }
}

inline void add_transposed_piece(const Slots& s, float factor, const float* grad,
                                 int64_t grad_stride) {
  if (s.signs.bits != nullptr) return add_columns<true>(s, factor, grad, grad_stride);
  add_columns<false>(s, factor, grad, grad_stride);
}

}  // namespace
}  // namespace roast
