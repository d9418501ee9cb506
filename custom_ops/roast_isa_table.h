// Last include of a file that names an instruction set: its table.
#pragma once

#include "roast_linear_simd.h"
#include "roast_stream_simd.h"
#include "roast_tiles_simd.h"

namespace roast {
namespace {

template <class T>
constexpr TypedOps<T> typed_ops() {
  TypedOps<T> ops = {copy_piece<T>, transpose_piece<T>, copy_runs<T>, turn_strip<T>, any_panel<T>,
                     nullptr,       any_dot<T>};
  if constexpr (kFar) ops.tiles = any_tiles<T>;
  return ops;
}

#if defined(ROAST_INFERENCE_ONLY)
constexpr bool kTrains = false;
#else
constexpr bool kTrains = true;
#endif

constexpr Isa isa_table(const char* name) {
  return {name,
          column_starts,
          V::kStreams ? stream_piece : nullptr,
          kTrains ? add_piece : nullptr,
          kTrains ? add_transposed_piece : nullptr,
          merge,
          refill,
          temper,
          temper_bits,
          flip,
          V::kRows,
          V::kGroups,
          {wide_groups(1), wide_groups(2), wide_groups(3), V::kGroups},
          V::kTileRows,
          V::kDotRows,
          V::kLoadsHalf,
          typed_ops<float>(),
          typed_ops<uint16_t>()};
}

}  // namespace
}  // namespace roast
