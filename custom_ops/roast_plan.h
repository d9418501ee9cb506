// The plan: a checked mapping, its tile grid and the tables that a caller attached.
#pragma once

#include "roast_isa.h"
#include "roast_kernel.h"
#include "roast_mapping.h"

struct roast_plan {
  roast::Mapping map;
  float scale;
  // Number of the first tile that the view touches, and how many.
  int64_t i0, j0, grid_i, grid_j;
  // Parts: rectangles of the matrix, the first of them cut by `lead_*`, so that no tile is cut.
  int64_t part_rows, part_cols, lead_rows, lead_cols, parts_across, parts;
  // The table: starts with the sign in the top bit, and generator states at every span.
  const uint32_t* starts;
  const uint32_t* states;
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
