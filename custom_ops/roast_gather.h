// Rectangles and spans of a virtual weight, for the kernels that need the weight itself.
#pragma once

#include "roast_elements.h"
#include "roast_plan.h"
#include "roast_stream.h"

namespace roast {

// ---- Hashed maps ----

inline uint32_t packed_start(const roast_plan& p, int64_t i, int64_t j) {
  if (p.starts != nullptr) return p.starts[(i - p.i0) * p.grid_j + (j - p.j0)];
  const uint32_t start = static_cast<uint32_t>(roast::tile_start(p.map, i, j));
  return roast::tile_negative(p.map, i, j) ? start | kNegative : start;
}

// What of a tile lies in a rectangle of the view: rows x cols from (inner_r, inner_c) of the tile
// on, at (r, c) of the rectangle.
struct TilePart {
  uint32_t packed;
  int64_t inner_r, inner_c, rows, cols, r, c;
  Signs signs;
};

inline int64_t first_slot(const Mapping& m, const TilePart& t) {
  const int64_t first = (t.packed & ~kNegative) + t.inner_r * m.tile_c + t.inner_c;
  return first >= m.n_memory ? first - m.n_memory : first;
}

// The part as pieces that lie in the array in one run of rows each, and where they start: all of
// it, or each row and its rest where the tile runs over the end of the array.
template <class Visit>
void each_run(const Mapping& m, const TilePart& t, const Visit& visit) {
  int64_t first = first_slot(m, t);
  if (first + (t.rows - 1) * m.tile_c + t.cols <= m.n_memory) return visit(first, t);
  for (int64_t r = 0; r < t.rows; ++r, first += m.tile_c) {
    if (first >= m.n_memory) first -= m.n_memory;
    TilePart run = t;
    run.rows = 1;
    run.r = t.r + r;
    run.cols = min64(t.cols, m.n_memory - first);
    run.signs.first = t.signs.first + r * t.signs.stride;
    visit(first, run);
    run.c = t.c + run.cols;
    run.signs.first += run.cols;
    run.cols = t.cols - run.cols;
    visit(0, run);
  }
}

// kNegative where element k of a row of signs is -.
inline uint32_t negative_at(const Signs& signs, int64_t k) {
  return signs.bits == nullptr ? 0 : (bit_at(signs.bits, signs.first + k) ^ 1u) << 31;
}

template <class T>
void place_piece(const roast_plan& p, const Piece<T>& piece, bool turned, float factor, float* out,
                 int64_t out_stride) {
  const TypedOps<T>& ops = ops_of<T>(p);
  (turned ? ops.transpose : ops.copy)(piece, factor, out, out_stride);
}

template <class T>
void place_tile(const roast_plan& p, const T* memory, bool turned, const TilePart& t, float* out,
                int64_t out_stride) {
  const float factor = negate_if(t.packed >> 31, p.scale);
  each_run(p.map, t, [&](int64_t first, const TilePart& run) {
    const Piece<T> piece{memory + first, p.map.tile_c, run.rows, run.cols, run.signs};
    float* to = out + (turned ? run.c * out_stride + run.r : run.r * out_stride + run.c);
    place_piece(p, piece, turned, factor, to, out_stride);
  });
}

// A row of 1x1 tiles: one hash an element and nothing else.
template <class T>
void gather_elements(const roast_plan& p, const T* memory, const Rect& view, float* out,
                     int64_t step_r, int64_t step_c) {
  for (int64_t r = view.r0; r < view.r1; ++r) {
    float* to = out + (r - view.r0) * step_r;
    const Signs signs = signs_at(p, view, r - view.r0, 0);
    for (int64_t c = view.c0; c < view.c1; ++c, to += step_c) {
      const uint32_t packed = packed_start(p, r, c) ^ negative_at(signs, c - view.c0);
      *to = load(memory[packed & ~kNegative]) * negate_if(packed >> 31, p.scale);
    }
  }
}

// [begin, end) cut where tiles start: the number of each tile, and of what lies in it the distance
// from `begin`, from the tile's start, and the length.
template <class Visit>
void each_step(int64_t begin, int64_t end, int64_t tile, int64_t* at, int64_t* inner, int64_t* n,
               const Visit& visit) {
  int64_t k = begin / tile;
  *inner = begin - k * tile;
  for (int64_t place = begin; place < end; place += *n, ++k, *inner = 0) {
    *at = place - begin;
    *n = min64(tile - *inner, end - place);
    visit(k);
  }
}

// The tiles of a rectangle of the view, along its columns first where `turned`: along the rows of
// the matrix, so that each goes on where the last one ended.
template <class Visit>
void each_tile(const roast_plan& p, const Rect& v, bool turned, const Visit& visit) {
  const Mapping& m = p.map;
  TilePart t{};
  const auto across = [&](int64_t i, int64_t j) {
    t.packed = packed_start(p, i, j);
    t.signs = signs_at(p, v, t.r, t.c);
    visit(t);
  };
  if (turned) {
    each_step(v.c0, v.c1, m.tile_c, &t.c, &t.inner_c, &t.cols, [&](int64_t j) {
      each_step(v.r0, v.r1, m.tile_r, &t.r, &t.inner_r, &t.rows, [&](int64_t i) { across(i, j); });
    });
  } else {
    each_step(v.r0, v.r1, m.tile_r, &t.r, &t.inner_r, &t.rows, [&](int64_t i) {
      each_step(v.c0, v.c1, m.tile_c, &t.c, &t.inner_c, &t.cols, [&](int64_t j) { across(i, j); });
    });
  }
}

// A rectangle of the matrix as one of the view, counted from the first tile.
inline Rect view_of(const Mapping& m, const Rect& rect) {
  const Rect v = m.transposed ? Rect{rect.c0, rect.c1, rect.r0, rect.r1} : rect;
  return Rect{v.r0 + m.origin_r, v.r1 + m.origin_r, v.c0 + m.origin_c, v.c1 + m.origin_c};
}

inline bool has_elements(const Mapping& m) { return m.tile_r == 1 && m.tile_c == 1; }

// A rectangle of the matrix; `out` is its corner. A row of the view becomes a column of `out` where
// `turned`, and a row otherwise; rows of `out` are `stride` apart.
template <class T>
void gather_rect(const roast_plan& p, const T* memory, const Rect& rect, bool turned, float* out,
                 int64_t stride) {
  const Rect v = view_of(p.map, rect);
  const int64_t step_r = turned ? 1 : stride, step_c = turned ? stride : 1;
  if (has_elements(p.map)) return gather_elements(p, memory, v, out, step_r, step_c);
  each_tile(p, v, turned,
            [&](const TilePart& t) { place_tile(p, memory, turned, t, out, stride); });
}

// Elements [e, e + n) in row-major order as rectangles of the matrix, each with its place in the
// span: the end of a row, whole rows, the start of a row.
template <class Visit>
void each_rect(const Mapping& m, int64_t e, int64_t n, const Visit& visit) {
  for (int64_t done = 0; done < n;) {
    const int64_t r = (e + done) / m.cols, c = (e + done) % m.cols, left = n - done;
    const bool whole = c == 0 && left >= m.cols;
    const int64_t rows = whole ? left / m.cols : 1;
    const int64_t width = whole ? m.cols : min64(m.cols - c, left);
    visit(Rect{r, r + rows, c, c + width}, done);
    done += rows * width;
  }
}

template <class T>
void gather_hashed_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  each_rect(p.map, e, n, [&](const Rect& rect, int64_t at) {
    gather_rect(p, memory, rect, p.map.transposed == 1, out + at, p.map.cols);
  });
}

template <class T>
void gather_drawn_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  SlotStream slots(p, e);
  for (int64_t k = 0; k < n; ++k) out[k] = load(memory[slots.next()]) * p.scale;
}

template <class T>
void gather_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  if (!in_order(p)) return gather_hashed_span(p, memory, e, n, out);
  if (draws_elements(p.map)) {
    gather_drawn_span(p, memory, e, n, out);
  } else {
    gather_hashed_span(p, memory, e, n, out);
  }
  if (draws_signs(p.map)) flip_drawn(p, e, n, out);
}

// ---- Rows of an embedding ----

// All starts of some rows first: hashes in vectors, and the processor fetches many runs at a time.
constexpr int64_t kRuns = 1024;

// Whether a row of an embedding is made of whole tiles of one row each, none of which runs over the
// end of the array.
inline bool rows_are_runs(const roast_plan& p, int64_t dim) {
  const Mapping& m = p.map;
  return has_columns(m) && !in_order(p) && m.transposed == 0 && m.cols == dim && m.tile_r == 1 &&
         dim % m.tile_c == 0 && dim / m.tile_c <= kRuns && m.origin_c % m.tile_c == 0 &&
         (m.range - 1) * m.align + m.tile_c <= m.n_memory;
}

// packed[across, n]: starts and signs of the tiles that the rows ids[n] are made of.
inline void starts_of_rows(const roast_plan& p, int64_t across, const int64_t* ids, int64_t n,
                           uint32_t* packed) {
  const Mapping& m = p.map;
  for (int64_t j = 0; j < across; ++j) {
    const Column column = tile_column(m, m.origin_c / m.tile_c + j);
    p.isa->starts(column, ids, m.origin_r, n, packed + j * n);
  }
}

}  // namespace roast
