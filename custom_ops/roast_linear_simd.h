// The micro-kernels of RoastLinear, for the instruction set that the including file names.
#pragma once

#include "roast_isa.h"
#include "roast_simd.h"

namespace roast {
namespace {

constexpr int kParts = kGroup / V::kLanes;  // registers of a group

// Enough independent sums to hide the latency of a fused multiply-add: 4 cycles, 2 a cycle.
constexpr int wide_groups(int rows) {
  int groups = V::kGroups;
  while (rows * groups * kParts < 8 && groups < kMaxGroups) groups *= 2;
  return groups;
}

// ---- Outputs of a tile contiguous ----

// Sums that are negated while a negative tile is added need no signs inside the loop.
template <int kRows, int kGroups>
inline __attribute__((always_inline)) void turn(V::Reg (&sums)[kRows][kGroups * kParts],
                                                uint32_t (&now)[kGroups],
                                                const uint32_t (&wanted)[kGroups]) {
  uint32_t any = 0;
  for (int g = 0; g < kGroups; ++g) any |= now[g] ^ wanted[g];
  if (any == 0) return;
  for (int g = 0; g < kGroups; ++g) {
    const V::Mask change = V::mask(now[g] ^ wanted[g]);
    now[g] = wanted[g];
    for (int r = 0; r < kRows; ++r) {
      for (int v = g * kParts; v < (g + 1) * kParts; ++v) sums[r][v] = V::flip(sums[r][v], change);
    }
  }
}

template <int kRows, int kGroups, class T>
void panel(const PanelJob<T>& job) {
  constexpr int kWide = kGroups * kParts;
  V::Reg sums[kRows][kWide];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kWide; ++v) sums[r][v] = V::zero();
    for (int g = 0; g < kGroups; ++g) V::prefetch(job.y + r * job.y_stride + g * kGroup);
  }
  uint32_t sign[kGroups] = {};
  const uint32_t plus[kGroups] = {};
  const int64_t stride = job.stride;
  for (int64_t s = 0; s < job.n_segments; ++s) {
    const Segment& segment = job.segments[s];
    const T* b[kGroups];
    uint32_t wanted[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      const uint32_t packed = segment.packed[job.tile[g]];
      b[g] = job.memory + (packed & ~kNegative) + job.offset[g];
      wanted[g] = packed & kNegative;
    }
    turn<kRows, kGroups>(sums, sign, wanted);
    const float* a = job.inputs + int64_t{segment.first} * kRows;
    const int64_t end = segment.rows * stride;
    for (int64_t k = 0; k < end; k += stride, a += kRows) {
      V::Reg w[kWide];
      for (int v = 0; v < kWide; ++v) w[v] = V::load(b[v / kParts] + k + v % kParts * V::kLanes);
      for (int r = 0; r < kRows; ++r) {
        const V::Reg x = V::set1(a[r]);
        for (int v = 0; v < kWide; ++v) sums[r][v] = V::fma(x, w[v], sums[r][v]);
      }
    }
  }
  turn<kRows, kGroups>(sums, sign, plus);
  const V::Reg scale = V::set1(job.scale);
  for (int v = 0; v < kWide; ++v) {
    const V::Reg bias = job.bias != nullptr ? V::load(job.bias + v * V::kLanes) : V::zero();
    for (int r = 0; r < kRows; ++r) {
      float* y = job.y + r * job.y_stride + v * V::kLanes;
      const V::Reg sum = job.first ? sums[r][v] : V::add(sums[r][v], V::load(y));
      V::store(y, job.last ? V::fma(sum, scale, bias) : sum);
    }
  }
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
  for (int64_t c = 0; job.bias != nullptr && c < job.cols; ++c) bias[c] = job.bias[c];
  whole.bias = bias;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < whole.cols; ++c) {
      y[r * whole.cols + c] = !job.first && c < job.cols ? job.y[r * job.y_stride + c] : 0.0f;
    }
  }
  panel_of_rows<V::kRows>(whole, rows, groups);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < job.cols; ++c) job.y[r * job.y_stride + c] = y[r * whole.cols + c];
  }
}

template <class T>
void any_panel(const PanelJob<T>& job, int rows, int groups) {
  if (job.cols < groups * kGroup) return ragged_panel(job, rows, groups);
  panel_of_rows<V::kRows>(job, rows, groups);
}

// ---- Inputs of a tile contiguous ----

template <int kRows, class T>
void dot(const DotJob<T>& job) {
  V::Reg sums[kRows][kDotOutputs];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kDotOutputs; ++o) sums[r][o] = V::zero();
  }
  const float* x = job.x;
  for (int64_t s = 0; s < job.n_segments; ++s) {
    const DotSegment<T>& segment = job.segments[s];
    V::Mask sign[kDotOutputs];
    for (int o = 0; o < kDotOutputs; ++o) sign[o] = V::mask(segment.sign[o]);
    for (int64_t k = 0; k < segment.length; k += V::kLanes) {
      const int64_t n = segment.length - k;
      V::Reg b[kDotOutputs];
      for (int o = 0; o < kDotOutputs; ++o) {
        b[o] = V::flip(load_first(segment.b[o] + k, n), sign[o]);
      }
      for (int r = 0; r < kRows; ++r) {
        const V::Reg a = load_first(x + r * job.x_stride + k, n);
        for (int o = 0; o < kDotOutputs; ++o) sums[r][o] = V::fma(a, b[o], sums[r][o]);
      }
    }
    x += segment.length;
  }
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
