// The micro-kernels of RoastLinear, for the instruction set that the including file names.
#pragma once

#include "roast_isa.h"
#include "roast_simd.h"

namespace roast {
namespace {

constexpr int kParts = kGroup / V::kLanes;  // registers of a group
// Whether arrays that no cache holds are worth code of their own.
constexpr bool kFar = V::kTileRows > 0;

// Enough independent sums to hide the latency of a fused multiply-add: 4 cycles, 2 a cycle.
constexpr int wide_groups(int rows) {
  int groups = V::kGroups;
  while (rows * groups * kParts < 8 && groups < kMaxGroups) groups *= 2;
  return groups;
}

// ---- Outputs of a tile contiguous ----

// Sums that are negated while a negative tile is added need no signs inside the loop.
template <int kRows, int kGroups>
ROAST_INLINE void turn(V::Reg (&sums)[kRows][kGroups * kParts], uint32_t (&now)[kGroups],
                       const uint32_t (&wanted)[kGroups]) {
  uint32_t any = 0;
  ROAST_UNROLL
  for (int g = 0; g < kGroups; ++g) any |= now[g] ^ wanted[g];
  if (any == 0) return;
  ROAST_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const V::Mask change = V::mask(now[g] ^ wanted[g]);
    now[g] = wanted[g];
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ROAST_UNROLL
      for (int v = g * kParts; v < (g + 1) * kParts; ++v) sums[r][v] = V::flip(sums[r][v], change);
    }
  }
}

enum Source { kNear, kFarAway, kCopied };

// Adds `rows` inputs, and fetches as much of a tile to come: tiles start anywhere in the array,
// which no processor foresees. One input at a time: sums fill the registers, and a longer loop
// spills. kCopied: what is read goes to `copy` too, with its sign, for the blocks of rows to come.
template <Source kFrom, int kRows, int kGroups, class T>
ROAST_INLINE void multiply(V::Reg (&sums)[kRows][kGroups * kParts], const T* const (&b)[kGroups],
                           const T* const (&ahead)[kGroups], int64_t stride, int64_t rows,
                           const float* a, int64_t a_stride, float* copy,
                           const uint32_t (&sign)[kGroups]) {
  constexpr int kWide = kGroups * kParts;
  const int64_t end = rows * stride;
  V::Mask flips[kGroups];
  ROAST_UNROLL
  for (int g = 0; kFrom == kCopied && g < kGroups; ++g) flips[g] = V::mask(sign[g]);
  for (int64_t k = 0; k < end; k += stride, a += a_stride) {
    V::Reg w[kWide];
    ROAST_UNROLL
    for (int v = 0; v < kWide; ++v) {
      w[v] = V::load(b[v / kParts] + k + v % kParts * V::kLanes);
      if (kRows == 2) V::hold(&w[v]);
    }
    ROAST_UNROLL
    for (int g = 0; kFrom != kNear && g < kGroups; ++g) V::prefetch(ahead[g] + k);
    ROAST_UNROLL
    for (int v = 0; kFrom == kCopied && v < kWide; ++v) {
      w[v] = V::flip(w[v], flips[v / kParts]);
      V::store(copy + v * V::kLanes, w[v]);
    }
    copy += kFrom == kCopied ? kWide * V::kLanes : 0;
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const V::Reg x = V::set1(a[r]);
      ROAST_UNROLL
      for (int v = 0; v < kWide; ++v) sums[r][v] = V::fma(x, w[v], sums[r][v]);
    }
  }
}

// y = sums or y + sums, times the scale, plus the bias.
template <int kRows, int kGroups, class T>
ROAST_INLINE void finish(const PanelJob<T>& job, V::Reg (&sums)[kRows][kGroups * kParts]) {
  constexpr int kWide = kGroups * kParts;
  float* const y = job.y;
  const float* const bias = job.bias;
  const int64_t stride = job.y_stride;
  if (!job.first) {
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ROAST_UNROLL
      for (int v = 0; v < kWide; ++v) {
        sums[r][v] = V::add(sums[r][v], V::load(y + r * stride + v * V::kLanes));
      }
    }
  }
  const V::Reg scale = V::set1(job.scale);
  ROAST_UNROLL
  for (int v = 0; v < kWide; ++v) {
    const V::Reg b = bias != nullptr ? V::load(bias + v * V::kLanes) : V::zero();
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      V::store(y + r * stride + v * V::kLanes, V::fma(sums[r][v], scale, b));
    }
  }
}

template <int kRows, int kGroups, class T>
void panel(const PanelJob<T>& job) {
  constexpr bool kCopies = kFar && kRows == V::kRows;
  V::Reg sums[kRows][kGroups * kParts];
  ROAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ROAST_UNROLL
    for (int v = 0; v < kGroups * kParts; ++v) sums[r][v] = V::zero();
    ROAST_UNROLL
    for (int g = 0; g < kGroups; ++g) V::prefetch(job.y + r * job.y_stride + g * kGroup);
  }
  uint32_t sign[kGroups] = {};
  const uint32_t plus[kGroups] = {};
  const Segment* const segments = job.segments;
  const int64_t last = job.n_segments - 1, a_stride = job.inputs_stride;
  const auto tile = [&](int64_t s, int g) {
    return job.memory + (segments[s].packed[job.tile[g]] & ~kNegative) + job.offset[g];
  };
  // Two tiles ahead: one takes less time than memory does.
  const T *b[kGroups], *next[kGroups], *ahead[kGroups];
  ROAST_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    next[g] = tile(0, g);
    ahead[g] = tile(last < 1 ? last : 1, g);
  }
  int64_t s = 0;
  do {
    uint32_t wanted[kGroups];
    ROAST_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      b[g] = next[g];
      next[g] = ahead[g];
      if (s + 2 <= last) ahead[g] = tile(s + 2, g);
      wanted[g] = segments[s].packed[job.tile[g]] & kNegative;
    }
    const int64_t first = segments[s].first, rows = segments[s].rows;
    const float* const a = job.inputs + first * a_stride;
    if (kCopies && job.copy != nullptr) {
      float* const copy = job.copy + first * kGroups * kGroup;
      multiply<kCopied>(sums, b, ahead, job.stride, rows, a, a_stride, copy, wanted);
    } else {
      turn<kRows, kGroups>(sums, sign, wanted);
      if (!kFar || job.near) {
        multiply<kNear>(sums, b, ahead, job.stride, rows, a, a_stride, nullptr, wanted);
      } else {
        multiply<kFarAway>(sums, b, ahead, job.stride, rows, a, a_stride, nullptr, wanted);
      }
    }
  } while (++s <= last);
  turn<kRows, kGroups>(sums, sign, plus);
  finish<kRows, kGroups>(job, sums);
}

template <int kRows, int kGroups, class T>
void panel_of_groups(const PanelJob<T>& job, int groups) {
  if constexpr (kGroups > 1) {
    if (groups < kGroups) return panel_of_groups<kRows, kGroups / 2>(job, groups);
  }
  panel<kRows, kGroups>(job);
}

template <int kRows, class T>
void panel_of_rows(const PanelJob<T>& job, int rows, int groups) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return panel_of_rows<kRows - 1>(job, rows, groups);
  }
  panel_of_groups<kRows, wide_groups(kRows)>(job, groups);
}

// The last outputs, of which some are not there: the sums are whole, y and bias are not.
template <class T>
void ragged_panel(const PanelJob<T>& job, int rows, int groups) {
  constexpr int kMost = 3 * kMaxGroups * kGroup;  // up to 3 rows may be wide
  static_assert(V::kRows * V::kGroups * kGroup <= kMost, "y holds any block");
  float y[kMost], bias[kMaxGroups * kGroup] = {};
  PanelJob<T> whole = job;
  whole.y = y;
  whole.y_stride = groups * kGroup;
  whole.cols = whole.y_stride;
  ROAST_SHORT
  for (int64_t c = 0; job.bias != nullptr && c < job.cols; ++c) bias[c] = job.bias[c];
  whole.bias = bias;
  for (int64_t r = 0; r < rows; ++r) {
    ROAST_SHORT
    for (int64_t c = 0; c < whole.cols; ++c) {
      y[r * whole.cols + c] = !job.first && c < job.cols ? job.y[r * job.y_stride + c] : 0.0f;
    }
  }
  panel_of_rows<V::kRows>(whole, rows, groups);
  for (int64_t r = 0; r < rows; ++r) {
    ROAST_SHORT
    for (int64_t c = 0; c < job.cols; ++c) job.y[r * job.y_stride + c] = y[r * whole.cols + c];
  }
}

template <class T>
void any_panel(const PanelJob<T>& job, int rows, int groups) {
  if (job.cols < groups * kGroup) return ragged_panel(job, rows, groups);
  panel_of_rows<V::kRows>(job, rows, groups);
}

// ---- Tile by tile ----

// Groups of outputs at a time, and sums of each: eight and more independent sums.
constexpr int tile_groups(int rows) {
  return 3 * rows * 2 * kParts <= 2 * V::kRows * V::kGroups * kParts ? 2 : 1;
}
constexpr int tile_phases(int rows, int groups) {
  int phases = 1;
  while (rows * groups * kParts * phases < 8) phases *= 2;
  return phases;
}

// `depth` inputs of kGroups groups of outputs, and as much of a tile to come fetched.
template <int kRows, int kGroups, class T>
ROAST_INLINE void add_strip(const T* b, const T* ahead, int64_t stride, int64_t depth,
                            const float* x, int64_t x_stride, V::Mask sign, float* to,
                            int64_t to_stride) {
  constexpr int kWide = kGroups * kParts, kPhases = tile_phases(kRows, kGroups);
  V::Reg sums[kPhases][kRows][kWide];
  ROAST_UNROLL
  for (int p = 0; p < kPhases; ++p) {
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ROAST_UNROLL
      for (int v = 0; v < kWide; ++v) sums[p][r][v] = V::zero();
    }
  }
  const auto add = [&](int p, int64_t k) __attribute__((always_inline)) {
    V::Reg w[kWide];
    ROAST_UNROLL
    for (int v = 0; v < kWide; ++v) {
      w[v] = V::load(b + v * V::kLanes);
      if (kRows == 2) V::hold(&w[v]);
    }
    ROAST_UNROLL
    for (int g = 0; g < kGroups; ++g) V::prefetch(ahead + g * kGroup);
    ROAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const V::Reg a = V::set1(x[r * x_stride + k]);
      ROAST_UNROLL
      for (int v = 0; v < kWide; ++v) sums[p][r][v] = V::fma(a, w[v], sums[p][r][v]);
    }
    b += stride;
    ahead += stride;
  };
  int64_t k = 0;
  for (; k + kPhases <= depth; k += kPhases) {
    ROAST_UNROLL
    for (int p = 0; p < kPhases; ++p) add(p, k + p);
  }
  for (; k < depth; ++k) add(0, k);
  ROAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ROAST_UNROLL
    for (int v = 0; v < kWide; ++v) {
      V::Reg sum = sums[0][r][v];
      ROAST_UNROLL
      for (int p = 1; p < kPhases; ++p) sum = V::add(sum, sums[p][r][v]);
      float* const y = to + r * to_stride + v * V::kLanes;
      V::store(y, V::add(V::load(y), V::flip(sum, sign)));
    }
  }
}

template <int kRows, int kGroups, class T>
void tiles(const TileJob<T>& job) {
  const auto packed_at = [&](int64_t t) {
    return job.starts[(job.order[t] >> 16) * job.grid_j + (job.order[t] & 0xffffu)];
  };
  for (int64_t t = job.first; t < job.last; ++t) {
    const uint32_t packed = packed_at(t);
    const uint32_t later = packed_at(t + job.ahead < job.n_tiles ? t + job.ahead : t);
    const int64_t from = int64_t{job.order[t] >> 16} * job.tile_r - job.lead;
    const int64_t begin = from < 0 ? 0 : from;
    const int64_t depth = (from + job.tile_r < job.in ? from + job.tile_r : job.in) - begin;
    const T* const b = job.memory + (packed & ~kNegative) + (begin - from) * job.tile_c;
    const T* const ahead = job.memory + (later & ~kNegative);
    const V::Mask sign = V::mask(packed & kNegative);
    float* const sums = job.sums + int64_t{job.order[t] & 0xffffu} * job.tile_c;
    int64_t turn = job.turn;
    for (int64_t c = 0; c < job.tile_c; c += kGroups * kGroup, --turn) {
      if (turn < 0) turn = job.turns - 1;
      add_strip<kRows, kGroups>(b + c, (turn == 0 ? ahead : b) + c, job.tile_c, depth,
                                job.x + begin, job.x_stride, sign, sums + c, job.sums_stride);
    }
  }
}

template <int kRows, class T>
void tiles_of_rows(const TileJob<T>& job, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tiles_of_rows<kRows - 1>(job, rows);
  }
  constexpr int kGroups = tile_groups(kRows);
  if (job.tile_c % (kGroups * kGroup) == 0) return tiles<kRows, kGroups>(job);
  tiles<kRows, 1>(job);
}

template <class T>
void any_tiles(const TileJob<T>& job, int rows) {
  tiles_of_rows<V::kTileRows>(job, rows);
}

// ---- Inputs that meet the same slots ----

inline void merge(const MergeJob& job) {
  constexpr int kStep = 4 * V::kLanes;
  const int64_t all = (job.n << job.step) * job.rows;
  int64_t z = 0;
  for (; z + V::kLanes <= all; z += V::kLanes) V::store(job.sums + z, V::zero());
  ROAST_SHORT
  for (; z < all; ++z) job.sums[z] = 0;
  const uint32_t last_class = (uint32_t{1} << job.step) - 1;
  const uint32_t* start = job.starts;
  for (int64_t from = -job.lead; from < job.in; from += job.tile_r, start += job.starts_stride) {
    const uint32_t packed = *start, place = (packed & ~kNegative) >> job.unit;
    // Input k is at place k + shift of those that are summed.
    const int64_t shift = (place >> job.step) - from - job.first;
    int64_t begin = from < 0 ? 0 : from;
    int64_t end = from + job.tile_r < job.in ? from + job.tile_r : job.in;
    if (begin + shift < 0) begin = -shift;
    if (end + shift > job.n) end = job.n - shift;
    if (begin >= end) continue;
    const float* const x = job.x + begin * job.rows;
    float* const to = job.sums + ((place & last_class) * job.n + begin + shift) * job.rows;
    const int64_t n = (end - begin) * job.rows;
    const float one = negate_if(packed >> 31, 1.0f);
    const V::Reg ones = V::set1(one);
    int64_t k = 0;
    for (; k + kStep <= n; k += kStep) {
      V::Reg sums[4];
      ROAST_UNROLL
      for (int v = 0; v < 4; ++v) {
        const int64_t next = k + v * V::kLanes;
        sums[v] = V::fma(ones, V::load(x + next), V::load(to + next));
      }
      ROAST_UNROLL
      for (int v = 0; v < 4; ++v) V::store(to + k + v * V::kLanes, sums[v]);
    }
    for (; k + V::kLanes <= n; k += V::kLanes) {
      V::store(to + k, V::fma(ones, V::load(x + k), V::load(to + k)));
    }
    ROAST_SHORT
    for (; k < n; ++k) to[k] += one * x[k];
  }
}

// ---- Inputs of a tile contiguous ----

template <int kRows, class T>
void dot(const DotJob<T>& job) {
  V::Reg sums[kRows][kDotOutputs];
  ROAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ROAST_UNROLL
    for (int o = 0; o < kDotOutputs; ++o) sums[r][o] = V::zero();
  }
  const float* x = job.x;
  for (int64_t s = 0; s < job.n_segments; ++s) {
    const DotSegment<T>& segment = job.segments[s];
    V::Mask sign[kDotOutputs];
    ROAST_UNROLL
    for (int o = 0; o < kDotOutputs; ++o) sign[o] = V::mask(segment.sign[o]);
    for (int64_t k = 0; k < segment.length; k += V::kLanes) {
      const int64_t n = segment.length - k;
      V::Reg b[kDotOutputs];
      ROAST_UNROLL
      for (int o = 0; o < kDotOutputs; ++o) {
        b[o] = V::flip(load_first(segment.b[o] + k, n), sign[o]);
      }
      ROAST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const V::Reg a = load_first(x + r * job.x_stride + k, n);
        ROAST_UNROLL
        for (int o = 0; o < kDotOutputs; ++o) sums[r][o] = V::fma(a, b[o], sums[r][o]);
      }
    }
    x += segment.length;
  }
  ROAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kDotOutputs && o < job.cols; ++o) {
      float* y = job.y + r * job.y_stride + o;
      const float sum = job.first ? V::sum(sums[r][o]) : *y + V::sum(sums[r][o]);
      const float bias = job.bias != nullptr ? job.bias[o] : 0.0f;
      *y = job.last ? sum * job.scale + bias : sum;
    }
  }
}

template <int kRows, class T>
void dot_of_rows(const DotJob<T>& job, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_of_rows<kRows - 1>(job, rows);
  }
  dot<kRows>(job);
}

template <class T>
void any_dot(const DotJob<T>& job, int rows) {
  dot_of_rows<V::kDotRows>(job, rows);
}

}  // namespace
}  // namespace roast
