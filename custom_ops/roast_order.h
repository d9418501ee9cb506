// The tiles of a layer by their places in the array: who goes through them in this order finds in
// the cache what tiles before have read, however large the array is.
#pragma once

#include "roast_plan.h"
#include "roast_stream.h"

namespace roast {

inline bool may_wrap(const Mapping& m) {
  return (m.range - 1) * m.align > m.n_memory - m.tile_r * m.tile_c;
}

// 16 and more contiguous outputs, whole tiles that lie in the array in one piece.
inline bool has_panels(const Mapping& m) {
  return m.transposed && m.tile_c % kGroup == 0 && m.origin_c % kGroup == 0 && m.tile_r >= 4 &&
         !may_wrap(m) && !draws_elements(m) && !draws_signs(m);
}

// Numbers of tile rows and columns share a word. Whole tiles are multiplied, so most of what they
// hold must be there.
inline bool has_order(const roast_plan& p) {
  return has_panels(p.map) && p.grid_i <= 0xffff && p.grid_j <= 0xffff &&
         p.grid_j * p.map.tile_c <= 2 * p.map.rows;
}

// Tile columns are cut into slices for threads; each has an order of its own. A slice of an array
// that no second cache level holds is larger: more of its tiles overlap.
struct Slices {
  int64_t n, columns;
};

constexpr int64_t kSliceNumel = int64_t{1} << 18, kMostSlices = 8;
constexpr int64_t kLargeArray = int64_t{1} << 19;
constexpr int64_t kLargeSliceNumel = int64_t{1} << 20, kFewestLarge = 2, kMostLarge = 4;

inline Slices slices_of(const roast_plan& p) {
  const int64_t wanted =
      p.map.n_memory > kLargeArray
          ? max64(min64(p.map.numel / kLargeSliceNumel, kMostLarge), kFewestLarge)
          : max64(min64(p.map.numel / kSliceNumel, kMostSlices), 1);
  const int64_t n = min64(wanted, p.grid_j);
  const int64_t columns = ceil_div(p.grid_j, n);
  return Slices{ceil_div(p.grid_j, columns), columns};
}

// Near enough: the order within a bucket saves no reads.
constexpr int64_t kBuckets = 1024;

inline void fill_order(const roast_plan& p, const uint32_t* starts, uint32_t* order) {
  const Slices slices = slices_of(p);
  int shift = 0;
  while (p.map.n_memory >> shift >= kBuckets) ++shift;
  const auto bucket = [&](int64_t i, int64_t j) {
    return (starts[i * p.grid_j + j] & ~kNegative) >> shift;
  };
  for (int64_t j0 = 0; j0 < p.grid_j; j0 += slices.columns) {
    const int64_t j1 = min64(j0 + slices.columns, p.grid_j);
    uint32_t next[kBuckets + 1] = {};
    for (int64_t i = 0; i < p.grid_i; ++i) {
      for (int64_t j = j0; j < j1; ++j) ++next[bucket(i, j) + 1];
    }
    for (int64_t k = 0; k < kBuckets; ++k) next[k + 1] += next[k];
    for (int64_t i = 0; i < p.grid_i; ++i) {
      for (int64_t j = j0; j < j1; ++j) {
        order[next[bucket(i, j)]++] = static_cast<uint32_t>(i << 16 | j);
      }
    }
    order += (j1 - j0) * p.grid_i;
  }
}

}  // namespace roast
