// What one instruction set offers, and which are there. Every instruction set fills the same table.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace roast {

// Outputs are computed in groups of this many.
constexpr int kGroup = 16;
constexpr int kMaxGroups = 8;
// Outputs at a time where a tile's inputs are contiguous.
constexpr int kDotOutputs = 4;
// The sign of a tile, on top of its start, which is less than 2^30.
constexpr uint32_t kNegative = 0x80000000u;

// Signs, one bit each, 1 for +: that of (r, c) is bit first + r * stride + c, bit b of a byte being
// the b-th lowest. Three bytes behind the last one are readable. No bits: all +.
struct Signs {
  const uint8_t* bits;
  int64_t first, stride;
};

// A piece of a tile: `rows` x `cols` at `in`, whose rows lie `in_stride` apart.
template <class T>
struct Piece {
  const T* in;
  int64_t in_stride, rows, cols;
  Signs signs = {nullptr, 0, 0};
};

// Inputs `first` to first + rows - 1, counted from the first of the pass, in up to kMaxGroups tiles
// side by side: where each tile's part starts in the array, and its sign in the top bit.
struct Segment {
  int32_t first, rows;
  uint32_t packed[kMaxGroups];
};

// y[rows, groups * 16], first `cols` columns, becomes sums * scale + bias, where sums go over the
// segments' inputs and, if these are not the first ones, y.
template <class T>
struct PanelJob {
  const T* memory;
  int64_t stride;  // from one input to the next
  // Group g is offset[g] into the part of tile[g].
  int64_t offset[kMaxGroups], tile[kMaxGroups];
  const Segment* segments;
  int64_t n_segments;
  const float* inputs;  // [input, row], `inputs_stride` from one input to the next
  int64_t inputs_stride;
  float* y;
  int64_t y_stride, cols;
  float scale;
  const float* bias;  // may be null
  bool first;
  bool near;  // no need to fetch tiles ahead
  // Where whole blocks leave what they read, float[inputs, groups * 16] with signs, or null.
  float* copy;
};

// `length` consecutive inputs of kDotOutputs outputs.
template <class T>
struct DotSegment {
  const T* b[kDotOutputs];
  uint32_t sign[kDotOutputs];
  int64_t length;
};

template <class T>
struct DotJob {
  const DotSegment<T>* segments;
  int64_t n_segments;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride, cols;
  float scale;
  const float* bias;
  bool first, last;
};

// Tiles order[first] to order[last - 1], whole: sums[row, output] += x[row, input] * tile[input,
// output]. Outputs are counted from tile column 0 on.
template <class T>
struct TileJob {
  const T* memory;
  const uint32_t* starts;  // [tile row, tile column], signs in the top bit
  int64_t grid_j;
  const uint32_t* order;  // tile row * 65536 + tile column
  int64_t first, last, n_tiles;
  // The tile so many places further is fetched meanwhile; of its strips, each block of rows takes
  // those whose turn it is.
  int64_t ahead, turn, turns;
  int64_t tile_r, tile_c;
  int64_t lead;  // inputs of tile row 0 that are not there
  const float* x;
  int64_t x_stride, in;
  float* sums;
  int64_t sums_stride;
};

// One column of tiles, `rows` rows of x at once: sums[place] += sign * x[input] for each row of
// each tile, where place is where that row of the tile starts in the array. Places lie 2^unit slots
// apart; every 2^step-th one belongs to the same class. Of each class, the n places from `first` on
// are summed, and stand together.
struct MergeJob {
  const uint32_t* starts;  // of the column's tiles, `starts_stride` apart
  int64_t starts_stride;
  int64_t tile_r, lead, in;  // tile row 0 lacks `lead` inputs
  int unit, step;
  int64_t first, n;
  const float* x;  // [input, row]
  int64_t rows;
  float* sums;  // [class, place of it, row]
};

// Parts of kGroup outputs, `cols` consecutive inputs each, that become columns of a panel. Where
// there are bits, row k has its signs from bit[k] on (see Signs), beside the tile's.
template <class T>
struct Strip {
  const T* row[kGroup];
  uint32_t sign[kGroup];
  int64_t cols;
  const uint8_t* bits;
  int64_t bit[kGroup];
};

template <class T>
struct TypedOps {
  // out[r, c] or out[c, r] = in[r, c] * sign * factor.
  void (*copy)(const Piece<T>&, float factor, float* out, int64_t out_stride);
  void (*transpose)(const Piece<T>&, float factor, float* out, int64_t out_stride);
  // out[n, across, length]: run (k, j) starts where packed[j * n + k] says, and is negated where
  // its top bit is set.
  void (*runs)(const T* memory, const uint32_t* packed, int64_t n, int64_t across, int64_t length,
               float factor, float* out);
  // out[c, k] = row k, input c, with its signs; rows of out are `out_stride` apart.
  void (*turn)(const Strip<T>&, float* out, int64_t out_stride);
  void (*panel)(const PanelJob<T>&, int rows, int groups);
  void (*tiles)(const TileJob<T>&, int rows);
  void (*dot)(const DotJob<T>&, int rows);
};

// Slots of a tile, `rows` x `cols` at `sums`, whose rows lie `stride` apart.
struct Slots {
  float* sums;
  int64_t stride, rows, cols;
  Signs signs = {nullptr, 0, 0};
};

struct Column;

struct Isa {
  const char* name;
  // packed[n]: starts and signs of the column's tiles in rows ids[k] + origin.
  void (*starts)(const Column&, const int64_t* ids, int64_t origin, int64_t n, uint32_t* packed);
  // out[r, c] = in[r, c] for outputs that no cache holds; null where there are no such stores.
  void (*stream)(const Piece<float>&, float* out, int64_t out_stride);
  // sums[r, c] += grad[r, c] * sign * factor, or grad[c, r] * sign * factor. Null where nothing is
  // trained.
  void (*add)(const Slots&, float factor, const float* grad, int64_t grad_stride);
  void (*add_transposed)(const Slots&, float factor, const float* grad, int64_t grad_stride);
  void (*merge)(const MergeJob&);
  // The stream of signs and drawn slots (roast_mapping.h): the next block of a state, words out of
  // it, and of each word the lowest bit.
  void (*refill)(uint32_t* state);
  void (*temper)(const uint32_t* words, int64_t n, uint32_t* draws);
  void (*temper_bits)(const uint32_t* words, int64_t n, uint8_t* bits);
  // Negates x[k] where bit first + k is 0; reads no byte behind the last bit's.
  void (*flip)(const uint8_t* bits, int64_t first, int64_t n, float* x);
  // Largest block of rows; groups at a time if there are several blocks, and for 1, 2, 3, 4 and
  // more rows if there is one.
  int rows, groups;
  int wide_groups[4];
  // Where tile_rows is 0, there is no tiles().
  int tile_rows, dot_rows;
  bool loads_half;
  TypedOps<float> f32;
  TypedOps<uint16_t> f16;
};

extern const Isa kIsaPortable, kIsaAvx2, kIsaAvx512, kIsaNeon;

// The instruction set that a new plan gets.
const Isa& chosen_isa();

}  // namespace roast
