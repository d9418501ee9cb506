// Rectangles and spans of a virtual weight, for the kernels that need the weight itself.
#pragma once

#include "roast_elements.h"
#include "roast_plan.h"

namespace roast {

inline bool draws_elements(const Mapping& m) { return m.element != roast::kHashed; }
inline bool draws_signs(const Mapping& m) { return m.sign == roast::kMt19937Sign; }
inline bool draws(const Mapping& m) { return draws_elements(m) || draws_signs(m); }
inline int64_t element_width(const Mapping& m) { return m.element == roast::kDrawn64 ? 2 : 1; }

// ---- Hashed maps ----

inline uint32_t packed_start(const roast_plan& p, int64_t i, int64_t j) {
  if (p.starts != nullptr) return p.starts[(i - p.i0) * p.grid_j + (j - p.j0)];
  const uint32_t start = static_cast<uint32_t>(roast::tile_start(p.map, i, j));
  return roast::tile_negative(p.map, i, j) ? start | kNegative : start;
}

// A piece that runs over the end of the array: split each run, or step by element.
template <class T>
void place_wrapped(const roast_plan& p, const T* memory, bool turned, int64_t first, int64_t rows,
                   int64_t cols, float factor, float* out, int64_t out_stride) {
  const int64_t n = p.map.n_memory;
  for (int64_t r = 0; r < rows; ++r, first += p.map.tile_c) {
    if (turned) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t index = first + c < n ? first + c : first + c - n;
        out[c * out_stride + r] = load(memory[index]) * factor;
      }
      continue;
    }
    const int64_t begin = first < n ? first : first - n;
    const int64_t before_end = min64(cols, n - begin);
    float* to = out + r * out_stride;
    ops_of<T>(p).copy(Piece<T>{memory + begin, 0, 1, before_end}, factor, to, 0);
    ops_of<T>(p).copy(Piece<T>{memory, 0, 1, cols - before_end}, factor, to + before_end, 0);
  }
}

// Rows x cols of tile `packed`, from (inner_r, inner_c) of it on.
template <class T>
void place_tile(const roast_plan& p, const T* memory, bool turned, uint32_t packed, int64_t inner_r,
                int64_t inner_c, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  const Mapping& m = p.map;
  const float factor = negate_if(packed >> 31, p.scale);
  int64_t first = (packed & ~kNegative) + inner_r * m.tile_c + inner_c;
  if (first >= m.n_memory) first -= m.n_memory;
  if (first + (rows - 1) * m.tile_c + cols > m.n_memory) {
    return place_wrapped(p, memory, turned, first, rows, cols, factor, out, out_stride);
  }
  const Piece<T> piece{memory + first, m.tile_c, rows, cols};
  const TypedOps<T>& ops = ops_of<T>(p);
  (turned ? ops.transpose : ops.copy)(piece, factor, out, out_stride);
}

// A row of 1x1 tiles: one hash an element and nothing else.
template <class T>
void gather_elements(const roast_plan& p, const T* memory, const Rect& view, float* out,
                     int64_t step_r, int64_t step_c) {
  for (int64_t r = view.r0; r < view.r1; ++r) {
    float* to = out + (r - view.r0) * step_r;
    for (int64_t c = view.c0; c < view.c1; ++c, to += step_c) {
      const uint32_t packed = packed_start(p, r, c);
      *to = load(memory[packed & ~kNegative]) * negate_if(packed >> 31, p.scale);
    }
  }
}

// A rectangle of the matrix; `out` is its corner. A row of the view becomes a column of `out` where
// `turned`, and a row otherwise; rows of `out` are `stride` apart.
template <class T>
void gather_rect(const roast_plan& p, const T* memory, const Rect& rect, bool turned, float* out,
                 int64_t stride) {
  const Mapping& m = p.map;
  Rect v = m.transposed ? Rect{rect.c0, rect.c1, rect.r0, rect.r1} : rect;
  v = Rect{v.r0 + m.origin_r, v.r1 + m.origin_r, v.c0 + m.origin_c, v.c1 + m.origin_c};
  const int64_t step_r = turned ? 1 : stride, step_c = turned ? stride : 1;
  if (m.tile_r == 1 && m.tile_c == 1) {
    return gather_elements(p, memory, v, out, step_r, step_c);
  }
  // Along the rows of `out`, so that writes go on where the last tile's ended.
  for (int64_t at = turned ? v.c0 : v.r0; at < (turned ? v.c1 : v.r1);) {
    int64_t done = 0;
    for (int64_t along = turned ? v.r0 : v.c0; along < (turned ? v.r1 : v.c1);) {
      const int64_t r = turned ? along : at, c = turned ? at : along;
      const int64_t i = r / m.tile_r, j = c / m.tile_c;
      const int64_t inner_r = r - i * m.tile_r, inner_c = c - j * m.tile_c;
      const int64_t rows = min64(m.tile_r - inner_r, v.r1 - r);
      const int64_t cols = min64(m.tile_c - inner_c, v.c1 - c);
      place_tile(p, memory, turned, packed_start(p, i, j), inner_r, inner_c, rows, cols,
                 out + (r - v.r0) * step_r + (c - v.c0) * step_c, stride);
      done = turned ? cols : rows;
      along += turned ? rows : cols;
    }
    at += done;
  }
}

// Elements [e, e + n) in row-major order: the end of a row, whole rows, the start of a row.
template <class T>
void gather_hashed_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  const int64_t cols = p.map.cols;
  while (n > 0) {
    const int64_t r = e / cols, c = e % cols;
    const bool whole = c == 0 && n >= cols;
    const int64_t rows = whole ? n / cols : 1;
    const int64_t width = whole ? cols : min64(cols - c, n);
    gather_rect(p, memory, Rect{r, r + rows, c, c + width}, p.map.transposed == 1, out, cols);
    e += rows * width;
    n -= rows * width;
    out += rows * width;
  }
}

// ---- Streams ----

constexpr int64_t kSaved = Mt19937::kSavedWords;

inline int64_t streams(const Mapping& m) {
  return (draws_elements(m) ? 1 : 0) + (draws_signs(m) ? 1 : 0);
}

// The generator of elements (`signs` false) or signs, just before element e.
inline Mt19937 generator_at(const roast_plan& p, bool signs, int64_t e) {
  const Mapping& m = p.map;
  const int64_t width = signs ? 1 : element_width(m);
  if (p.states != nullptr) {
    const int64_t slot = e / kSpanNumel * streams(m) + (signs && draws_elements(m) ? 1 : 0);
    Mt19937 generator(p.states + slot * kSaved);
    generator.skip(static_cast<uint64_t>(e % kSpanNumel * width));
    return generator;
  }
  Mt19937 generator(static_cast<uint32_t>(signs ? m.sign_seed : m.seed));
  generator.skip(static_cast<uint64_t>((signs ? m.sign_skip : 0) + e * width));
  return generator;
}

template <class T>
void gather_drawn_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  const uint64_t range = static_cast<uint64_t>(p.map.range);
  const uint64_t n_memory = static_cast<uint64_t>(p.map.n_memory);
  const bool wide = p.map.element == roast::kDrawn64;
  Mt19937 generator = generator_at(p, false, e);
  for (int64_t k = 0; k < n; ++k) {
    uint64_t draw = generator.next();
    if (wide) draw = draw << 32 | generator.next();
    out[k] = load(memory[draw % range % n_memory]) * p.scale;
  }
}

inline void apply_drawn_signs(const roast_plan& p, int64_t e, int64_t n, float* out) {
  Mt19937 generator = generator_at(p, true, e);
  for (int64_t k = 0; k < n; ++k) {
    out[k] = negate_if(~generator.next() & 1u, out[k]);
  }
}

template <class T>
void gather_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  if (draws_elements(p.map)) {
    gather_drawn_span(p, memory, e, n, out);
  } else {
    gather_hashed_span(p, memory, e, n, out);
  }
  if (draws_signs(p.map)) apply_drawn_signs(p, e, n, out);
}

}  // namespace roast
