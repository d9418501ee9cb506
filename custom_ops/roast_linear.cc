// RoastLinear: feeds the panels of a layer to the micro-kernels of one instruction set, straight
// from the array where tiles allow it, else from a gathered piece of the weight.
#include "roast_gather.h"
#include "roast_kernel.h"
#include "roast_layer.h"
#include "roast_merge.h"
#include "roast_panel.h"
#include "roast_plan.h"

using roast::Block;
using roast::block_of;
using roast::Call;
using roast::cut_layer;
using roast::DotJob;
using roast::DotSegment;
using roast::end_of_pass;
using roast::kDotOutputs;
using roast::kDots;
using roast::kGroup;
using roast::kMaxGroups;
using roast::kNegative;
using roast::kTiles;
using roast::kTilesNumel;
using roast::Layer;
using roast::makes_panels;
using roast::Mapping;
using roast::max64;
using roast::min64;
using roast::ops_of;
using roast::packed_start;
using roast::PanelJob;
using roast::Scratch;
using roast::scratch_of;
using roast::Segment;
using roast::TileJob;
using roast::width_at;

namespace {

// ---- Pieces of tiles as they lie in the array ----

// Where the groups of a panel are: in which tile columns, and where in them.
struct Columns {
  int64_t groups, tiles, j[kMaxGroups];
  int64_t offset[kMaxGroups], tile[kMaxGroups];
};

Columns columns_of(const Layer& l, int64_t first) {
  const Mapping& m = l.plan->map;
  Columns columns;
  columns.groups = width_at(l, first) / kGroup;
  columns.tiles = 0;
  for (int64_t g = 0; g < columns.groups; ++g) {
    const int64_t c = first + g * kGroup + m.origin_c, j = c / m.tile_c;
    if (g == 0 || columns.j[columns.tiles - 1] != j) columns.j[columns.tiles++] = j;
    columns.offset[g] = c % m.tile_c;
    columns.tile[g] = columns.tiles - 1;
  }
  return columns;
}

// Inputs [begin, end) of a panel, one segment for each row of tiles. Returns how many there are.
// Where there is one column, its negative tiles come last: the micro-kernel turns its sums once.
int64_t list_segments(const Layer& l, const Columns& columns, int64_t begin, int64_t end,
                      Segment* segments) {
  const roast_plan& p = *l.plan;
  const Mapping& m = p.map;
  const int64_t first_i = (begin + m.origin_r) / m.tile_r;
  const int64_t n = (end - 1 + m.origin_r) / m.tile_r - first_i + 1;
  int64_t low = 0, high = n, inner = begin + m.origin_r - first_i * m.tile_r;
  for (int64_t i = first_i, k = begin; k < end; ++i, inner = 0) {
    const uint32_t skipped = static_cast<uint32_t>(inner * m.tile_c);
    const uint32_t packed = packed_start(p, i, columns.j[0]) + skipped;
    // Without a branch: signs are random.
    const int64_t negative = columns.tiles == 1 ? packed >> 31 : 0;
    high -= negative;
    Segment* segment = segments + (negative != 0 ? high : low);
    low += 1 - negative;
    segment->packed[0] = packed;
    for (int64_t t = 1; t < columns.tiles; ++t) {
      segment->packed[t] = packed_start(p, i, columns.j[t]) + skipped;
    }
    const int64_t rows = min64(m.tile_r - inner, end - k);
    segment->first = static_cast<int32_t>(k - begin);
    segment->rows = static_cast<int32_t>(rows);
    k += rows;
  }
  return n;
}

// ---- Parts ----

// Row blocks [block, last_block) of one panel and one pass.
struct Run {
  int64_t first, begin, end, block, last_block;
};

// Whatever is the same for all row blocks stands in `job` already.
template <class T>
void run_blocks(const Layer& l, const Call& call, const Run& run, PanelJob<T>* job) {
  const float* packed = l.packed_bytes > 0 ? static_cast<const float*>(call.scratch) : call.x;
  const int64_t width = width_at(l, run.first);
  job->y_stride = l.out;
  job->cols = min64(width, l.out - run.first);
  job->first = run.begin == 0;
  const bool last = run.end == l.in;
  job->bias = last && call.bias != nullptr ? call.bias + run.first : nullptr;
  if (!last) job->scale = 1.0f;
  job->near = makes_panels(l) || roast::is_near(l.plan->map);
  for (int64_t block = run.block; block < run.last_block; ++block) {
    const Block rows = block_of(l, block);
    job->inputs_stride = rows.rows;
    job->inputs = packed + run.begin * l.n + rows.first * (run.end - run.begin);
    job->y = call.y + rows.first * l.out + run.first;
    ops_of<T>(*l.plan).panel(*job, static_cast<int>(rows.rows), static_cast<int>(width / kGroup));
    // What the first block has read the others find in the cache.
    job->near = true;
    job->copy = nullptr;
  }
}

// The one segment of a panel in scratch memory.
Segment whole_panel(const Run& run) {
  Segment segment;
  segment.first = 0;
  segment.rows = static_cast<int32_t>(run.end - run.begin);
  segment.packed[0] = 0;
  return segment;
}

PanelJob<float> panel_job(const Layer& l, const float* panel, const Segment* segment) {
  PanelJob<float> job;
  job.memory = panel;
  job.stride = l.width;
  for (int64_t g = 0; g < kMaxGroups; ++g) {
    job.offset[g] = g * kGroup;
    job.tile[g] = 0;
  }
  job.segments = segment;
  job.n_segments = 1;
  job.copy = nullptr;
  return job;
}

// From a panel of the weight in `scratch`.
template <class T>
void run_gathered(const Layer& l, const T* memory, const Call& call, const Run& run,
                  const Scratch& scratch) {
  const bool turned = l.mode == roast::kTurned;
  if (turned) {
    roast::turn_panel(l, memory, run.first, run.begin, run.end, scratch.panel);
  } else {
    roast::gather_panel(l, memory, run.first, run.begin, run.end, scratch);
  }
  const Segment segment = whole_panel(run);
  PanelJob<float> job = panel_job(l, scratch.panel, &segment);
  job.scale = turned ? l.plan->scale : 1.0f;
  run_blocks(l, call, run, &job);
}

// The segments that stand in the scratch memory: of one tile column and one pass, or none.
struct Listed {
  int64_t j, begin, n;
};

// Straight from the array; where there are many blocks, the first one copies what it reads.
template <class T>
void run_in_place(const Layer& l, const T* memory, const Call& call, const Run& run,
                  const Scratch& scratch, Listed* listed) {
  const Columns columns = columns_of(l, run.first);
  if (columns.tiles > 1 || columns.j[0] != listed->j || run.begin != listed->begin) {
    listed->j = columns.tiles > 1 ? -1 : columns.j[0];
    listed->begin = run.begin;
    listed->n = list_segments(l, columns, run.begin, run.end, scratch.segments);
  }
  PanelJob<T> job;
  job.memory = memory;
  job.stride = l.plan->map.tile_c;
  for (int64_t g = 0; g < columns.groups; ++g) {
    job.offset[g] = columns.offset[g];
    job.tile[g] = columns.tile[g];
  }
  job.segments = scratch.segments;
  job.n_segments = listed->n;
  job.scale = l.plan->scale;
  job.copy = nullptr;
  if (!l.copies || block_of(l, run.block).rows < l.block_rows) {
    return run_blocks(l, call, run, &job);
  }
  job.copy = scratch.panel;
  run_blocks(l, call, Run{run.first, run.begin, run.end, run.block, run.block + 1}, &job);
  const Segment segment = whole_panel(run);
  PanelJob<float> rest = panel_job(l, scratch.panel, &segment);
  rest.stride = width_at(l, run.first);
  rest.scale = l.plan->scale;
  run_blocks(l, call, Run{run.first, run.begin, run.end, run.block + 1, run.last_block}, &rest);
}

template <class T>
void run_panels(const Layer& l, const T* memory, const Call& call, int64_t part) {
  const Scratch scratch = scratch_of(l, call.scratch, static_cast<size_t>(part));
  const int64_t first = part % l.slices * l.per_part * l.width;
  const int64_t last = min64(first + l.per_part * l.width, l.out);
  const int64_t first_block = part / l.slices * l.part_blocks;
  const int64_t last_block = min64(first_block + l.part_blocks, l.blocks);
  Listed listed{-1, 0, 0};
  for (int64_t block = first_block; block < last_block; block += l.chunk) {
    Run run{first, 0, 0, block, min64(block + l.chunk, last_block)};
    for (; run.begin < l.in; run.begin = run.end) {
      run.end = end_of_pass(l, run.begin);
      for (run.first = first; run.first < last; run.first += width_at(l, run.first)) {
        if (makes_panels(l)) {
          run_gathered(l, memory, call, run, scratch);
        } else {
          run_in_place(l, memory, call, run, scratch, &listed);
        }
      }
    }
  }
}

// Outputs [first, last) from sums that lie `stride` apart.
void finish_tiles(const Layer& l, const Call& call, const float* sums, int64_t stride,
                  int64_t first, int64_t last) {
  const float scale = l.plan->scale;
  for (int64_t r = 0; r < l.n; ++r) {
    const float* from = sums + r * stride;
    float* y = call.y + r * l.out;
    for (int64_t c = first; c < last; ++c) {
      y[c] = from[c] * scale + (call.bias != nullptr ? call.bias[c] : 0.0f);
    }
  }
}

template <class T>
void run_tiles(const Layer& l, const T* memory, const Call& call, int64_t part) {
  const roast_plan& p = *l.plan;
  const Mapping& m = p.map;
  const roast::Slices slices = roast::slices_of(p);
  const int64_t j0 = part * slices.columns, j1 = min64(j0 + slices.columns, p.grid_j);
  const int64_t stride = slices.columns * m.tile_c;
  float* const sums = reinterpret_cast<float*>(static_cast<char*>(call.scratch) +
                                               static_cast<size_t>(part) * l.part_bytes);
  for (int64_t k = 0; k < l.n * stride; ++k) sums[k] = 0;
  TileJob<T> job;
  job.memory = memory;
  job.starts = p.starts;
  job.grid_j = p.grid_j;
  job.order = p.order + j0 * p.grid_i;
  job.n_tiles = (j1 - j0) * p.grid_i;
  job.tile_r = m.tile_r;
  job.tile_c = m.tile_c;
  job.lead = m.origin_r - p.i0 * m.tile_r;
  job.x_stride = l.in;
  job.in = l.in;
  job.sums_stride = stride;
  const int64_t some = max64(kTilesNumel / (m.tile_r * m.tile_c), 1);
  const int64_t at_once = l.blocks == 1 ? job.n_tiles : some;
  job.ahead = l.blocks == 1 ? 2 : some;
  job.turns = l.blocks;
  for (job.first = 0; job.first < job.n_tiles; job.first = job.last) {
    job.last = min64(job.first + at_once, job.n_tiles);
    for (int64_t block = 0; block < l.blocks; ++block) {
      const Block rows = block_of(l, block);
      job.turn = block;
      job.x = call.x + rows.first * l.in;
      job.sums = sums + rows.first * stride - j0 * m.tile_c;
      ops_of<T>(p).tiles(job, static_cast<int>(rows.rows));
    }
  }
  // Output c is column c + lead of the tiles.
  const int64_t lead = m.origin_c - p.j0 * m.tile_c;
  finish_tiles(l, call, sums + lead - j0 * m.tile_c, stride, max64(j0 * m.tile_c - lead, 0),
               min64(j1 * m.tile_c - lead, l.out));
}

// Inputs [begin, end) of kDotOutputs outputs, the last one again where there are fewer.
template <class T>
int64_t list_dots(const Layer& l, const T* memory, int64_t first, int64_t begin, int64_t end,
                  DotSegment<T>* segments) {
  const Mapping& m = l.plan->map;
  DotSegment<T>* segment = segments;
  const roast::TileRows<kDotOutputs> rows(l, first);
  int64_t j = (begin + m.origin_c) / m.tile_c, inner = (begin + m.origin_c) % m.tile_c;
  for (int64_t k = begin; k < end; ++segment, ++j, inner = 0) {
    for (int64_t o = 0; o < kDotOutputs; ++o) {
      const uint32_t packed = packed_start(*l.plan, rows.i[o], j);
      segment->sign[o] = packed & kNegative;
      segment->b[o] = memory + (packed & ~kNegative) + rows.offset[o] + inner;
    }
    segment->length = min64(m.tile_c - inner, end - k);
    k += segment->length;
  }
  return segment - segments;
}

template <class T>
void run_dots(const Layer& l, const T* memory, const Call& call, int64_t part) {
  const Scratch scratch = scratch_of(l, call.scratch, static_cast<size_t>(part));
  auto* const segments = reinterpret_cast<DotSegment<T>*>(scratch.segments);
  const int64_t panel_end = min64((part + 1) * l.per_part * l.width, l.out);
  for (int64_t first = part * l.per_part * l.width; first < panel_end; first += l.width) {
    for (int64_t k = 0; k < l.in;) {
      const int64_t end = end_of_pass(l, k);
      DotJob<T> job;
      job.segments = segments;
      job.n_segments = list_dots(l, memory, first, k, end, segments);
      job.x_stride = l.in;
      job.y_stride = l.out;
      job.cols = min64(l.width, l.out - first);
      job.scale = l.plan->scale;
      job.bias = call.bias != nullptr ? call.bias + first : nullptr;
      job.first = k == 0;
      job.last = end == l.in;
      for (int64_t block = 0; block < l.blocks; ++block) {
        const Block rows = block_of(l, block);
        job.x = call.x + rows.first * l.in + k;
        job.y = call.y + rows.first * l.out + first;
        ops_of<T>(*l.plan).dot(job, static_cast<int>(rows.rows));
      }
      k = end;
    }
  }
}

// ---- Inputs ----

int64_t pack_parts(const Layer& l) {
  return max64(min64(l.n * l.in / roast::kPackNumel, l.blocks), 1);
}

void pack_block(const Layer& l, const float* x, int64_t block, float* packed) {
  const Block rows = block_of(l, block);
  if (l.mode == roast::kMerged) {
    const roast::MergedBlock to = merged_block(l, block, rows.rows);
    const roast::Piece<float> piece{x + rows.first * l.in, l.in, rows.rows, l.in};
    return l.plan->isa->f32.transpose(piece, 1.0f, packed + to.first, to.stride);
  }
  for (int64_t k = 0; k < l.in;) {
    const int64_t end = end_of_pass(l, k), depth = end - k;
    const roast::Piece<float> piece{x + rows.first * l.in + k, l.in, rows.rows, depth};
    l.plan->isa->f32.transpose(piece, 1.0f, packed + k * l.n + rows.first * depth, rows.rows);
    k = end;
  }
}

template <class T>
void run_part(const Layer& l, const T* memory, const Call& call, int64_t part) {
  if (l.mode == kTiles) {
    run_tiles(l, memory, call, part);
  } else if (l.mode == roast::kMerged) {
    roast::run_merged(l, memory, call, part);
  } else if (l.mode == kDots) {
    run_dots(l, memory, call, part);
  } else {
    run_panels(l, memory, call, part);
  }
}

}  // namespace

extern "C" {

size_t roast_linear_scratch_bytes(const roast_plan* plan, int type, size_t n) {
  const Layer l = cut_layer(plan, type, n);
  return l.packed_bytes + static_cast<size_t>(l.parts) * l.part_bytes;
}

size_t roast_linear_pack_parts(const roast_plan* plan, int type, size_t n) {
  const Layer l = cut_layer(plan, type, n);
  return l.packed_bytes > 0 ? static_cast<size_t>(pack_parts(l)) : 0;
}

size_t roast_linear_parts(const roast_plan* plan, int type, size_t n) {
  return static_cast<size_t>(cut_layer(plan, type, n).parts);
}

void roast_linear_pack_part(const roast_plan* plan, int type, const float* x, size_t n,
                            void* scratch, size_t part) {
  const Layer l = cut_layer(plan, type, n);
  const int64_t k = static_cast<int64_t>(part), parts = pack_parts(l);
  for (int64_t b = k * l.blocks / parts; b < (k + 1) * l.blocks / parts; ++b) {
    pack_block(l, x, b, static_cast<float*>(scratch));
  }
}

void roast_linear_part(const roast_plan* plan, const void* memory, int type, const float* x,
                       size_t n, const float* bias, void* scratch, size_t part, float* y) {
  const Layer l = cut_layer(plan, type, n);
  const Call call{x, bias, y, scratch};
  const int64_t k = static_cast<int64_t>(part);
  if (type == ROAST_FLOAT16) {
    run_part(l, static_cast<const uint16_t*>(memory), call, k);
  } else {
    run_part(l, static_cast<const float*>(memory), call, k);
  }
}

}  // extern "C"
