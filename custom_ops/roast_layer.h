// How a linear layer is cut: which kernel, panels of outputs, passes over inputs, blocks of rows,
// parts for threads, and the working memory of all that.
#pragma once

#include "roast_gather.h"
#include "roast_order.h"
#include "roast_plan.h"

namespace roast {

// Inputs of one pass: a panel of this depth stays in the first cache levels for all blocks of rows,
// and a deeper one for two.
constexpr int64_t kDepth = 1024, kDepthOfTwo = 2048;
constexpr int64_t kGatherDepth = 256;
// Elements of a panel that is copied for the blocks of rows to come, and how many make up for it.
constexpr int64_t kCopyNumel = int64_t{1} << 13, kLeastCopied = 5, kLeastNearCopied = 8;
// Tiles of a pass, in the direction of inputs.
constexpr int64_t kMaxSegments = 256;
// The rows that one pass goes over: their inputs stay in the second cache level for all panels,
// and more of the shallower passes over copies.
constexpr int64_t kChunkRows = 48, kCopyRows = 192;
// Rows up to which tiles are better taken by their places: where tiles overlap, and more where the
// array is far from the processor.
constexpr int64_t kMostTileRows = 4, kMostFarTileRows = 8, kFarArray = int64_t{1} << 18;
// An array that lies in the first cache levels whatever is done meanwhile.
constexpr int64_t kNearArray = int64_t{1} << 16;
// Tiles that stay in the first cache level for all blocks of rows, in elements.
constexpr int64_t kTilesNumel = int64_t{1} << 11;
// Rows up to which a panel is better read as it lies than turned first.
constexpr int64_t kMostDotRows = 3;
// Multiplications that pay for handing a part to a thread, and inputs that are packed.
constexpr int64_t kPartWork = int64_t{1} << 18, kPackNumel = int64_t{1} << 15;
constexpr int64_t kMaxParts = 32;
// Rows of a block whose inputs are merged, at least; of a pass, sums that leave room in the first
// cache levels, slots of the array that leave room in the second, and places at least.
constexpr int64_t kMergedRows = 16, kRowUnit = 8;
constexpr int64_t kPassSums = 3 << 12, kPassSlots = 3 << 14, kFewestPlaces = 16;
constexpr float kMostScale = 16777216.0f, kLeastScale = 1 / kMostScale;
constexpr int64_t kMaxScratch = int64_t{1} << 23;
constexpr size_t kLine = 64;

enum Mode {
  kPanels,  // 16 and more contiguous outputs: read as they lie
  kTiles,   // the same, few rows: tile by tile, by their places in the array
  kMerged,  // the same, few places: inputs that meet the same slots are added first
  kDots,    // 16 and more contiguous inputs, few rows: read as they lie
  kTurned,  // the same for many rows: turned into panels first
  kGather   // anything: gathered into panels first
};

// How a layer is cut. Follows from plan, type and n alone.
struct Layer {
  const roast_plan* plan;
  int64_t n, in, out;
  Mode mode;
  int64_t blocks, block_rows;  // of rows
  bool copies;                 // the first block of a chunk leaves each panel to the others
  int64_t width;               // outputs of a panel
  int64_t depth;               // inputs of a pass
  int64_t lead;                // the first pass is this much shorter, so that passes cut no tile
  int64_t segments;            // of a pass, at most
  int64_t chunk;               // blocks of a chunk of rows
  // A part is some panels of some chunks: part p has slice p mod `slices` of the panels.
  int64_t per_part, slices, part_blocks, parts;
  // Where inputs are merged: rows of x and places lie together in blocks and passes of these.
  int64_t row_unit, pass_places;
  // x as the micro-kernels read it, [pass][block][input][row], and the rest for each part.
  size_t packed_bytes, part_bytes;
};

constexpr size_t round_up(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

inline size_t list_bytes(const Layer& l) {
  return round_up(static_cast<size_t>(l.segments) * sizeof(DotSegment<float>));
}
static_assert(sizeof(Segment) <= sizeof(DotSegment<float>), "one list or the other");

inline bool is_near(const Mapping& m) { return m.n_memory <= kNearArray; }

// Whether there are blocks of rows enough to make up for a copy of each panel.
inline bool pays_to_copy(const Layer& l) {
  const Isa& isa = *l.plan->isa;
  const int64_t least = is_near(l.plan->map) ? kLeastNearCopied : kLeastCopied;
  return isa.tile_rows > 0 && ceil_div(l.n, isa.rows) >= least;
}

// Whether a few rows are better multiplied tile by tile than panel by panel, which reads each tile
// in strips. Up to three rows a panel is wide, and only tiles that overlap make up for that; for
// one row only where the array is not at hand anyway.
inline bool takes_tiles(const Layer& l) {
  const roast_plan& p = *l.plan;
  if (p.order == nullptr || p.isa->tile_rows == 0) return false;
  const bool overlap = p.map.numel / slices_of(p).n >= p.map.n_memory;
  if (l.n == 1) return overlap && !is_near(p.map);
  if (l.n < kMostTileRows) return overlap;
  return l.n <= (p.map.n_memory > kFarArray ? kMostFarTileRows : kMostTileRows);
}

// Whether sums may be scaled instead of the weight. A far smaller or larger scale would come too
// late: for a sum that overflows meanwhile, or a weight that is subnormal or 0 for its scale.
inline bool scales_sums(float scale) {
  const float size = scale < 0 ? -scale : scale;
  return kLeastScale <= size && size <= kMostScale;
}

inline Mode mode_of(const Layer& l, int type) {
  const Mapping& m = l.plan->map;
  const Isa& isa = *l.plan->isa;
  if (!scales_sums(l.plan->scale)) return kGather;
  if (in_order(*l.plan) || m.rows != l.out || m.cols != l.in || may_wrap(m)) return kGather;
  const bool readable = (type == ROAST_FLOAT32 || isa.loads_half) && !draws_signs(m);
  if (m.transposed) {
    // Converting float16 for every block again costs more than converting it once.
    const bool once = type == ROAST_FLOAT32 || l.n <= isa.rows || pays_to_copy(l);
    if (!has_panels(m) || !readable) return kGather;
    if (l.plan->starts != nullptr && l.plan->places.n > 0) return kMerged;
    if (!once) return kGather;
    return takes_tiles(l) ? kTiles : kPanels;
  }
  if (m.tile_c < kGroup) return kGather;
  if (l.n <= kMostDotRows && readable) return kDots;
  // Tiles of many rows are gathered as fast.
  return m.tile_r < kGroup ? kTurned : kGather;
}

// Whether panels are made in the scratch memory, and then read by all rows.
inline bool makes_panels(const Layer& l) { return l.mode == kGather || l.mode == kTurned; }

// Passes of equal depth that start where a tile starts.
inline void cut_inputs(Layer* l) {
  const Mapping& m = l->plan->map;
  if (makes_panels(*l)) {
    // A generator walks whole rows.
    l->depth = in_order(*l->plan) ? l->in : min64(l->in, kGatherDepth);
    if (l->mode == kGather || m.tile_c > l->depth) return;
    l->lead = m.origin_c % m.tile_c;
    l->depth -= l->depth % m.tile_c;
    return;
  }
  const int64_t tile = l->mode == kDots ? m.tile_c : m.tile_r;
  const int64_t origin = l->mode == kDots ? m.origin_c : m.origin_r;
  const bool once = l->mode == kDots || l->blocks == 1;
  const int64_t deep = l->copies ? kCopyNumel / l->width : l->blocks <= 2 ? kDepthOfTwo : kDepth;
  const int64_t most = once ? kMaxSegments * min64(tile, deep) : deep;
  if (tile >= most) {
    l->depth = most;
    l->segments = 2;
    return;
  }
  l->lead = origin % tile;
  const int64_t all = l->lead + l->in;
  const int64_t passes = ceil_div(all, min64(most, kMaxSegments * tile) / tile * tile);
  l->segments = ceil_div(ceil_div(all, passes), tile);
  l->depth = l->segments * tile;
}

// Rows are cut first: a part that goes over more panels reads its inputs less often. A panel that
// is made costs too much to be made again for every chunk, though.
inline void cut_parts(Layer* l) {
  const int64_t panels = ceil_div(l->out, l->width);
  // In floating point: the product of the three may not fit 64 bits.
  const double work = static_cast<double>(l->n * l->in) * static_cast<double>(l->out);
  const int64_t by_work =
      work > kPartWork * kMaxParts ? kMaxParts : static_cast<int64_t>(work) / kPartWork;
  const int64_t by_scratch = max64(kMaxScratch / static_cast<int64_t>(l->part_bytes), 4);
  const int64_t most = max64(min64(by_scratch, by_work), 1);
  l->chunk = l->blocks;
  const int64_t rows = l->copies ? kCopyRows : kChunkRows;
  if (l->mode == kPanels || l->mode == kMerged)
    l->chunk = ceil_div(l->blocks, ceil_div(l->n, rows));
  const int64_t chunks = ceil_div(l->blocks, l->chunk);
  const int64_t part_chunks = ceil_div(chunks, min64(chunks, most));
  const int64_t row_parts = ceil_div(chunks, part_chunks);
  l->part_blocks = part_chunks * l->chunk;
  l->per_part = ceil_div(panels, max64(most / row_parts, 1));
  l->slices = ceil_div(panels, l->per_part);
  l->parts = l->slices * row_parts;
}

// A part is a slice of the table's order, and has its sums to itself until they are whole.
inline void cut_tiles(Layer* l) {
  const Slices slices = slices_of(*l->plan);
  const int64_t outputs = slices.columns * l->plan->map.tile_c;
  l->parts = slices.n;
  l->part_bytes = round_up(static_cast<size_t>(l->n * outputs) * sizeof(float));
}

// A panel is a column of tiles, and a pass goes over places. A block of rows is several of the
// micro-kernel's: the column's tiles are walked once for all of them. Where it takes little, rows
// are filled up to a multiple of 8, so that no sum is read across two that were just stored. What
// fills them goes into no output.
inline void cut_merged(Layer* l) {
  const Places& places = l->plan->places;
  const int64_t most_rows = max64(kMergedRows, 2 * l->plan->isa->rows);
  const int64_t wanted = ceil_div(l->n, ceil_div(l->n, most_rows));
  const int64_t filled = ceil_div(wanted, kRowUnit) * kRowUnit;
  if (filled * (kRowUnit - 1) <= wanted * kRowUnit) {
    l->row_unit = kRowUnit;
    l->block_rows = filled;
  } else {
    l->row_unit = 1;
    l->block_rows = min64(l->plan->isa->rows, l->n);
  }
  l->blocks = ceil_div(l->n, l->block_rows);
  l->width = l->plan->map.tile_c;
  l->depth = l->in;
  l->segments = places.classes();
  const int64_t rows = l->block_rows * places.classes();
  const int64_t most = min64(kPassSums / rows, kPassSlots >> (places.unit + places.step));
  l->pass_places = ceil_div(places.class_n, ceil_div(places.class_n, max64(most, kFewestPlaces)));
  const int64_t inputs = l->blocks * l->block_rows * l->in;
  l->packed_bytes = l->n > 1 ? round_up(static_cast<size_t>(inputs) * sizeof(float)) : 0;
  l->part_bytes =
      list_bytes(*l) + round_up(static_cast<size_t>(rows * l->pass_places) * sizeof(float));
  cut_parts(l);
}

// Where a block of inputs is, and its rows, the filled-up ones too.
struct MergedBlock {
  int64_t first, stride;
};

inline MergedBlock merged_block(const Layer& l, int64_t block, int64_t rows) {
  return MergedBlock{block * l.block_rows * l.in, ceil_div(rows, l.row_unit) * l.row_unit};
}

inline Layer cut_layer(const roast_plan* p, int type, size_t n) {
  const Mapping& m = p->map;
  const Isa& isa = *p->isa;
  Layer l{};
  l.plan = p;
  l.n = static_cast<int64_t>(n);
  l.out = m.shape[0];
  l.in = m.numel / l.out;
  if (l.n == 0) return l;
  l.mode = mode_of(l, type);
  const int64_t block = l.mode == kDots    ? isa.dot_rows
                        : l.mode == kTiles ? isa.tile_rows
                                           : isa.rows;
  l.blocks = ceil_div(l.n, block);
  l.block_rows = block;
  l.copies = l.mode == kPanels && pays_to_copy(l);
  if (l.mode == kTiles) {
    cut_tiles(&l);
    return l;
  }
  if (l.mode == kMerged) {
    cut_merged(&l);
    return l;
  }
  const bool wide = l.mode == kPanels && l.blocks == 1;
  l.width = kGroup * (wide ? isa.wide_groups[min64(l.n, 4) - 1] : isa.groups);
  if (l.mode == kDots) l.width = kDotOutputs;
  cut_inputs(&l);
  const bool packs = l.mode != kDots && l.n > 1;
  l.packed_bytes = packs ? round_up(static_cast<size_t>(l.n * l.in) * sizeof(float)) : 0;
  const size_t panel = round_up(static_cast<size_t>(l.width * l.depth) * sizeof(float));
  l.part_bytes = list_bytes(l) + (makes_panels(l) ? 2 * panel : l.copies ? panel : 0);
  cut_parts(&l);
  return l;
}

struct Block {
  int64_t first, rows;
};

// All blocks are whole but the last two, which share what is left: a block of few rows is slow.
inline Block block_of(const Layer& l, int64_t k) {
  const int64_t whole = max64(l.blocks - 2, 0), first = k * l.block_rows;
  if (k < whole) return Block{first, l.block_rows};
  const int64_t rest = l.n - whole * l.block_rows, half = l.blocks < 2 ? rest : (rest + 1) / 2;
  return k == whole ? Block{first, half} : Block{l.n - rest + half, rest - half};
}

// Outputs of the panel at `first`. There are micro-kernels for powers of two only.
inline int64_t width_at(const Layer& l, int64_t first) {
  int64_t width = l.width;
  while (width > kGroup && width > (l.out - first + kGroup - 1) / kGroup * kGroup) width /= 2;
  return width;
}

inline int64_t end_of_pass(const Layer& l, int64_t k) {
  return min64(k == 0 ? l.depth - l.lead : k + l.depth, l.in);
}

// What a call brings: x float32[n, in], bias float32[out] or null, y float32[n, out].
struct Call {
  const float* x;
  const float* bias;
  float* y;
  void* scratch;
};

// The working memory of a part.
struct Scratch {
  Segment* segments;
  float* panel;
  float* rows;
};

inline Scratch scratch_of(const Layer& l, void* scratch, size_t part) {
  char* bytes = static_cast<char*>(scratch) + l.packed_bytes + part * l.part_bytes;
  const size_t panel = round_up(static_cast<size_t>(l.width * l.depth) * sizeof(float));
  float* floats = reinterpret_cast<float*>(bytes + list_bytes(l));
  return Scratch{reinterpret_cast<Segment*>(bytes), floats, floats + panel / sizeof(float)};
}

}  // namespace roast
