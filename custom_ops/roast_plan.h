// The plan: a checked mapping, its tile grid and the tables that a caller attached.
#pragma once

#include "roast_isa.h"
#include "roast_kernel.h"
#include "roast_mapping.h"

namespace roast {

// Where rows of tiles can start in the array: n places, 2^unit slots apart. From one row of a tile
// to the next are 2^step places, so a tile stays in one class of them.
struct Places {
  int unit, step;
  int64_t n, class_n;  // class_n: of one class, at most

  int64_t classes() const { return int64_t{1} << step; }
  int64_t of_class(int64_t k) const { return ((n - 1 - k) >> step) + 1; }
};

}  // namespace roast

struct roast_plan {
  roast::Mapping map;
  float scale;
  // Number of the first tile that the view touches, and how many.
  int64_t i0, j0, grid_i, grid_j;
  // Parts: rectangles of the matrix, the first of them cut by `lead_*`, so that no tile is cut.
  int64_t part_rows, part_cols, lead_rows, lead_cols, parts_across, parts;
  // Of layers that merge inputs (roast_order.h); else none.
  roast::Places places;
  // The table: starts with the sign in the top bit; tiles by their places in the array; drawn signs
  // in the order of the view, from bit signs_lead on; states of the generator of slots at every
  // span.
  const uint32_t* starts;
  const uint32_t* order;
  const uint8_t* signs;
  const uint32_t* states;
  int64_t signs_lead;
  const roast::Isa* isa;
};

namespace roast {

// A saved state takes 2500 bytes: at this distance it costs 1% of the dense weight.
constexpr int64_t kSpanNumel = int64_t{1} << 16;

struct Rect {
  int64_t r0, r1, c0, c1;
};

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A part of a map of which any rectangle can be made.
inline Rect rect_of_part(const roast_plan& p, int64_t part) {
  const int64_t r = part / p.parts_across * p.part_rows - p.lead_rows;
  const int64_t c = part % p.parts_across * p.part_cols - p.lead_cols;
  return Rect{max64(r, 0), min64(r + p.part_rows, p.map.rows), max64(c, 0),
              min64(c + p.part_cols, p.map.cols)};
}

struct Span {
  int64_t first, n;
};

// A part of a map whose elements are made in their order.
inline Span span_of_part(const roast_plan& p, int64_t part) {
  const int64_t first = part * kSpanNumel;
  return Span{first, p.states != nullptr ? min64(kSpanNumel, p.map.numel - first) : p.map.numel};
}

template <class T>
const TypedOps<T>& ops_of(const roast_plan& p);
template <>
inline const TypedOps<float>& ops_of<float>(const roast_plan& p) {
  return p.isa->f32;
}
template <>
inline const TypedOps<uint16_t>& ops_of<uint16_t>(const roast_plan& p) {
  return p.isa->f16;
}

}  // namespace roast
