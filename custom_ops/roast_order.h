// Where the tiles of a layer lie in the array. Who goes through them in that order finds in the
// cache what tiles before have read, however large the array is; and where a small array makes the
// rows of many tiles start at the same places, inputs can be added before they are multiplied.
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

// ---- Rows of tiles that meet ----

inline int low_zeros(int64_t x) {
  int zeros = 0;
  while ((x >> zeros & 1) == 0) ++zeros;
  return zeros;
}

// What an input or a place costs beside the product, in outputs; and classes, at most.
constexpr int64_t kMergeCost = 5, kMostClasses = 32;

// Whether places are so few that, for each column of tiles, inputs that meet the same slots are
// better added before they are multiplied: then the places, else none.
inline Places places_of(const Mapping& m) {
  constexpr Places kNone{0, 0, 0, 0};
  const bool aligned = (m.tile_c & (m.tile_c - 1)) == 0 && m.origin_c % m.tile_c == 0;
  if (!has_panels(m) || !aligned) return kNone;
  const int unit = low_zeros(m.tile_c | m.align), step = low_zeros(m.tile_c) - unit;
  const int64_t n = ((m.range - 1) * m.align >> unit) + ((m.tile_r - 1) << step) + 1;
  // There are fewer places than 2^32, and the products below must fit.
  const int64_t in = min64(m.numel / m.shape[0], int64_t{1} << 32), classes = int64_t{1} << step;
  const bool pays = classes <= min64(n, kMostClasses) &&
                    n * (m.tile_c + kMergeCost) <= in * (m.tile_c - kMergeCost);
  return pays ? Places{unit, step, n, ceil_div(n, classes)} : kNone;
}

// ---- Tiles one by one ----

// Numbers of tile rows and columns share a word. Whole tiles are multiplied, so most of what they
// hold must be there.
inline bool has_order(const roast_plan& p) {
  return has_panels(p.map) && p.places.n == 0 && p.grid_i <= 0xffff && p.grid_j <= 0xffff &&
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
