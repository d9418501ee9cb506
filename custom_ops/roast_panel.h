// Panels of a layer that are made in its scratch memory, float32[inputs, outputs], where the
// micro-kernels cannot read tiles as they lie.
#pragma once

#include "roast_gather.h"
#include "roast_layer.h"

namespace roast {

// The tile rows, and the places in them, of kRows outputs from `first` on; the last output again
// where there are fewer.
template <int kRows>
struct TileRows {
  int64_t output[kRows], i[kRows], offset[kRows];

  TileRows(const Layer& l, int64_t first) {
    const Mapping& m = l.plan->map;
    for (int64_t k = 0; k < kRows; ++k) {
      output[k] = min64(first + k, l.out - 1);
      const int64_t r = output[k] + m.origin_r;
      i[k] = r / m.tile_r;
      offset[k] = r % m.tile_r * m.tile_c;
    }
  }
};

// Any map: with signs and scale.
template <class T>
void gather_panel(const Layer& l, const T* memory, int64_t first, int64_t begin, int64_t end,
                  const Scratch& scratch) {
  const roast_plan& p = *l.plan;
  const Mapping& m = p.map;
  const int64_t cols = min64(l.width, l.out - first), depth = end - begin;
  if (!in_order(p) && m.rows == l.out && m.cols == l.in) {
    const Rect rect{first, first + cols, begin, end};
    return gather_rect(p, memory, rect, m.transposed == 0, scratch.panel, l.width);
  }
  if (depth == l.in) {
    gather_span(p, memory, first * l.in, cols * l.in, scratch.rows);
  } else {
    for (int64_t o = 0; o < cols; ++o) {
      gather_span(p, memory, (first + o) * l.in + begin, depth, scratch.rows + o * depth);
    }
  }
  const Piece<float> piece{scratch.rows, depth, cols, depth};
  p.isa->f32.transpose(piece, 1.0f, scratch.panel, l.width);
}

// kGroup outputs of a panel, from tiles whose inputs are contiguous: with signs, without the scale.
template <class T>
void turn_group(const Layer& l, const T* memory, int64_t first, int64_t begin, int64_t end,
                float* panel) {
  const roast_plan& p = *l.plan;
  const Mapping& m = p.map;
  const TileRows<kGroup> rows(l, first);
  Strip<T> strip;
  strip.bits = p.signs;
  int64_t j = (begin + m.origin_c) / m.tile_c, inner = (begin + m.origin_c) % m.tile_c;
  for (int64_t k = begin; k < end; k += strip.cols, ++j, inner = 0) {
    strip.cols = min64(m.tile_c - inner, end - k);
    for (int64_t o = 0; o < kGroup; ++o) {
      const uint32_t packed = packed_start(p, rows.i[o], j);
      strip.row[o] = memory + (packed & ~kNegative) + rows.offset[o] + inner;
      strip.sign[o] = packed & kNegative;
      strip.bit[o] = p.signs_lead + rows.output[o] * l.in + k;
    }
    ops_of<T>(p).turn(strip, panel + (k - begin) * l.width, l.width);
  }
}

template <class T>
void turn_panel(const Layer& l, const T* memory, int64_t first, int64_t begin, int64_t end,
                float* panel) {
  const int64_t width = width_at(l, first);
  for (int64_t g = 0; g < width; g += kGroup) {
    turn_group(l, memory, first + g, begin, end, panel + g);
  }
}

}  // namespace roast
