// RoastLinear where inputs that meet the same slots are added before they are multiplied.
#pragma once

#include "roast_layer.h"

namespace roast {

// One column of tiles over the merged inputs of a pass. Rows of a strip of outputs follow each
// other, so that all but the first ones find it in the first cache level.
template <class T>
void run_column(const Layer& l, const Call& call, int64_t first, const Block& rows,
                PanelJob<T>* job) {
  const Isa& isa = *l.plan->isa;
  const int64_t end = min64(first + l.width, l.out);
  const float* const inputs = job->inputs;
  const float* const bias = job->bias;
  int64_t groups = rows.rows <= isa.rows ? isa.wide_groups[min64(rows.rows, 4) - 1] : isa.groups;
  while (groups * kGroup > l.width) groups /= 2;
  for (int64_t c = first; c < end; c += groups * kGroup) {
    for (int64_t g = 0; g < groups; ++g) job->offset[g] = c - first + g * kGroup;
    job->cols = min64(groups * kGroup, end - c);
    job->bias = bias != nullptr ? bias + c : nullptr;
    for (int64_t r = 0, some = 0; r < rows.rows; r += some) {
      // The last two share what is left: few rows are slow.
      const int64_t left = rows.rows - r;
      some = left <= isa.rows ? left : left < 2 * isa.rows ? (left + 1) / 2 : isa.rows;
      job->inputs = inputs + r;
      job->y = call.y + (rows.first + r) * l.out + c;
      ops_of<T>(*l.plan).panel(*job, static_cast<int>(some), static_cast<int>(groups));
    }
  }
  job->inputs = inputs;
  job->bias = bias;
}

// Places [first, first + n) of each class: a class is a segment.
inline void list_classes(const Places& places, int64_t first, int64_t n, Segment* segments) {
  for (int64_t k = 0; k < places.classes(); ++k) {
    segments[k].first = static_cast<int32_t>(k * n);
    segments[k].rows = static_cast<int32_t>(max64(min64(places.of_class(k) - first, n), 0));
    segments[k].packed[0] = static_cast<uint32_t>((first << places.step | k) << places.unit);
  }
}

inline MergeJob merge_job(const roast_plan& p, float* sums) {
  const Mapping& m = p.map;
  MergeJob job;
  job.starts_stride = p.grid_j;
  job.tile_r = m.tile_r;
  job.lead = m.origin_r - p.i0 * m.tile_r;
  job.in = m.numel / m.shape[0];
  job.unit = p.places.unit;
  job.step = p.places.step;
  job.sums = sums;
  return job;
}

template <class T>
void run_merged(const Layer& l, const T* memory, const Call& call, int64_t part) {
  const roast_plan& p = *l.plan;
  const Scratch scratch = scratch_of(l, call.scratch, static_cast<size_t>(part));
  MergeJob merge = merge_job(p, scratch.panel);
  PanelJob<T> job{};
  job.memory = memory;
  job.stride = l.width;
  job.segments = scratch.segments;
  job.n_segments = p.places.classes();
  job.inputs = scratch.panel;
  job.y_stride = l.out;
  // The array is read from its beginning to its end.
  job.near = true;
  const float* packed = l.packed_bytes > 0 ? static_cast<const float*>(call.scratch) : call.x;
  const int64_t first = part % l.slices * l.per_part, last = min64(first + l.per_part, p.grid_j);
  const int64_t first_block = part / l.slices * l.part_blocks;
  const int64_t last_block = min64(first_block + l.part_blocks, l.blocks);
  for (merge.first = 0; merge.first < p.places.class_n; merge.first += merge.n) {
    merge.n = min64(l.pass_places, p.places.class_n - merge.first);
    list_classes(p.places, merge.first, merge.n, scratch.segments);
    const bool ends = merge.first + merge.n == p.places.class_n;
    job.first = merge.first == 0;
    job.scale = ends ? p.scale : 1.0f;
    job.bias = ends ? call.bias : nullptr;
    for (int64_t block = first_block; block < last_block; ++block) {
      const Block rows = block_of(l, block);
      const MergedBlock from = merged_block(l, block, rows.rows);
      merge.x = packed + from.first;
      merge.rows = job.inputs_stride = from.stride;
      for (int64_t j = first; j < last; ++j) {
        merge.starts = p.starts + j;
        p.isa->merge(merge);
        run_column(l, call, j * l.width, rows, &job);
      }
    }
  }
}

}  // namespace roast
