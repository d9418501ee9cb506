// RoastLinear where inputs that meet the same slots are added before they are multiplied.
#pragma once

#include "roast_layer.h"

namespace roast {

// One column of tiles over its merged inputs: a class of places is a segment.
template <class T>
void run_column(const Layer& l, const Call& call, int64_t first, const Block& rows,
                PanelJob<T>* job) {
  const Isa& isa = *l.plan->isa;
  const int64_t end = min64(first + l.width, l.out);
  int64_t groups = l.blocks == 1 ? isa.wide_groups[min64(l.n, 4) - 1] : isa.groups;
  while (groups * kGroup > l.width) groups /= 2;
  for (int64_t c = first; c < end; c += groups * kGroup) {
    for (int64_t g = 0; g < groups; ++g) job->offset[g] = c - first + g * kGroup;
    job->cols = min64(groups * kGroup, end - c);
    job->y = call.y + rows.first * l.out + c;
    job->bias = call.bias != nullptr ? call.bias + c : nullptr;
    ops_of<T>(*l.plan).panel(*job, static_cast<int>(rows.rows), static_cast<int>(groups));
  }
}

inline void list_classes(const Places& places, Segment* segments) {
  for (int64_t k = 0; k < places.classes(); ++k) {
    segments[k].first = static_cast<int32_t>(k * places.class_n);
    segments[k].rows = static_cast<int32_t>(places.of_class(k));
    segments[k].packed[0] = static_cast<uint32_t>(k << places.unit);
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
  job.class_places = p.places.class_n;
  job.sums = sums;
  return job;
}

template <class T>
void run_merged(const Layer& l, const T* memory, const Call& call, int64_t part) {
  const roast_plan& p = *l.plan;
  const Scratch scratch = scratch_of(l, call.scratch, static_cast<size_t>(part));
  list_classes(p.places, scratch.segments);
  MergeJob merge = merge_job(p, scratch.panel);
  PanelJob<T> job{};
  job.memory = memory;
  job.stride = l.width;
  job.segments = scratch.segments;
  job.n_segments = p.places.classes();
  job.inputs = scratch.panel;
  job.y_stride = l.out;
  job.scale = l.plan->scale;
  job.first = true;
  // The array is read from its beginning to its end.
  job.near = true;
  const float* packed = l.packed_bytes > 0 ? static_cast<const float*>(call.scratch) : call.x;
  const int64_t last = min64((part + 1) * l.per_part, p.grid_j);
  for (int64_t block = 0; block < l.blocks; ++block) {
    const Block rows = block_of(l, block);
    merge.x = packed + rows.first * l.in;
    merge.rows = rows.rows;
    for (int64_t j = part * l.per_part; j < last; ++j) {
      merge.starts = p.starts + j;
      p.isa->merge(merge);
      run_column(l, call, j * l.width, rows, &job);
    }
  }
}

}  // namespace roast
