// See roast_kernel.h. Plans, gathers and embeddings.
#include "roast_kernel.h"

#include "roast_gather.h"
#include "roast_mapping.h"
#include "roast_plan.h"
#include "roast_table.h"

using roast::ceil_div;
using roast::kSpanNumel;
using roast::Mapping;
using roast::max64;
using roast::min64;
using roast::Rect;
using roast::rect_of_part;
using roast::Span;
using roast::span_of_part;

namespace {

// Elements of a part: long enough to pay for handing it to a thread, short enough to balance.
constexpr int64_t kPartNumel = int64_t{1} << 15;
// ---- Parts ----

// Rectangles of whole tiles where tiles are small, and all of a matrix's row where that fits.
void cut_into_rects(roast_plan* p) {
  const Mapping& m = p->map;
  const int64_t tile_h = m.transposed ? m.tile_c : m.tile_r;
  const int64_t tile_w = m.transposed ? m.tile_r : m.tile_c;
  const int64_t origin_h = m.transposed ? m.origin_c : m.origin_r;
  const int64_t origin_w = m.transposed ? m.origin_r : m.origin_c;
  const int64_t unit_h = min64(tile_h, 128), unit_w = min64(tile_w, kPartNumel);
  p->lead_rows = tile_h == unit_h ? origin_h % unit_h : 0;
  p->lead_cols = tile_w == unit_w ? origin_w % unit_w : 0;
  const int64_t all_cols = p->lead_cols + m.cols, all_rows = p->lead_rows + m.rows;
  const int64_t fit = max64(kPartNumel / unit_h / unit_w, 1) * unit_w;
  p->part_cols = min64(all_cols, fit);
  p->part_rows = unit_h * max64(kPartNumel / (unit_h * p->part_cols), 1);
  p->parts_across = ceil_div(all_cols, p->part_cols);
  p->parts = p->parts_across * ceil_div(all_rows, p->part_rows);
}

// A part holds a span, so that its generator can be where it starts. Without saved states, each
// part would have to draw all that lies before it: then the whole weight is one part.
void cut_into_parts(roast_plan* p) {
  if (!roast::in_order(*p)) return cut_into_rects(p);
  p->parts = p->states != nullptr ? ceil_div(p->map.numel, kSpanNumel) : 1;
}

// A rectangle of the matrix with its given signs; `out` is its corner.
template <class T>
void gather_block(const roast_plan& p, const T* memory, const uint8_t* signs, const Rect& rect,
                  float* out, int64_t stride) {
  roast::gather_rect(p, memory, rect, p.map.transposed == 1, out, stride);
  for (int64_t r = rect.r0; signs != nullptr && r < rect.r1; ++r, out += stride) {
    p.isa->flip(signs, r * p.map.cols + rect.c0, rect.c1 - rect.c0, out);
  }
}

// Rows of an output that lie a multiple of 4 KiB apart fall into the same set of a cache: a tile
// that is written there waits for each line. This is where it is made then, and copied
// from in longer runs; its own rows share no sets.
constexpr int64_t kStageRows = 32, kStageCols = 128, kStageStride = kStageCols + 16;
constexpr int64_t kAliasNumel = 1024;
// An output that fits the second cache level waits for nothing; one that fits no level is written
// past them all.
constexpr int64_t kSecondLevelNumel = int64_t{1} << 17, kLastLevelNumel = int64_t{1} << 23;

// Whether each block is made in the stage, and written past the caches from there.
struct Way {
  bool staged, streamed;
};

Way way_of(const roast_plan& p) {
  const Mapping& m = p.map;
  // Tiles of one row of the output fill it from its start to its end as it is.
  if ((m.transposed ? m.tile_c : m.tile_r) == 1) return Way{false, false};
  const bool streamed = p.isa->stream != nullptr && m.numel > kLastLevelNumel;
  const bool aliased = m.cols % kAliasNumel == 0 && m.numel <= kLastLevelNumel;
  return Way{streamed || (aliased && m.numel > kSecondLevelNumel), streamed};
}

template <class T>
void gather_staged(const roast_plan& p, const T* memory, const uint8_t* signs, const Rect& rect,
                   bool streamed, float* out) {
  alignas(64) float stage[kStageRows * kStageStride];
  for (int64_t r = rect.r0; r < rect.r1; r += kStageRows) {
    for (int64_t c = rect.c0; c < rect.c1; c += kStageCols) {
      const Rect block{r, min64(r + kStageRows, rect.r1), c, min64(c + kStageCols, rect.c1)};
      gather_block(p, memory, signs, block, stage, kStageStride);
      const roast::Piece<float> piece{stage, kStageStride, block.r1 - r, block.c1 - c};
      float* to = out + r * p.map.cols + c;
      if (streamed) {
        p.isa->stream(piece, to, p.map.cols);
      } else {
        p.isa->f32.copy(piece, 1.0f, to, p.map.cols);
      }
    }
  }
}

template <class T>
void gather_part(const roast_plan& p, const T* memory, const uint8_t* signs, int64_t part,
                 float* out) {
  if (roast::in_order(p)) {
    const Span span = span_of_part(p, part);
    roast::gather_span(p, memory, span.first, span.n, out + span.first);
    if (signs != nullptr) p.isa->flip(signs, span.first, span.n, out + span.first);
    return;
  }
  const Rect rect = rect_of_part(p, part);
  const Way way = way_of(p);
  if (way.staged) return gather_staged(p, memory, signs, rect, way.streamed, out);
  gather_block(p, memory, signs, rect, out + rect.r0 * p.map.cols + rect.c0, p.map.cols);
}

template <class T>
void embedding_runs(const roast_plan& p, const T* memory, int64_t dim, const int64_t* ids,
                    int64_t first, int64_t last, float* out) {
  const int64_t across = dim / p.map.tile_c, most = roast::kRuns / across;
  uint32_t packed[roast::kRuns];
  for (int64_t k = first; k < last; k += most) {
    const int64_t n = min64(most, last - k);
    roast::starts_of_rows(p, across, ids + k, n, packed);
    roast::ops_of<T>(p).runs(memory, packed, n, across, p.map.tile_c, p.scale, out + k * dim);
    for (int64_t row = k; p.signs != nullptr && row < k + n; ++row) {
      p.isa->flip(p.signs, p.signs_lead + ids[row] * dim, dim, out + row * dim);
    }
  }
}

template <class T>
void embedding_part(const roast_plan& p, const T* memory, int64_t dim, const int64_t* ids,
                    int64_t first, int64_t last, float* out) {
  if (roast::rows_are_runs(p, dim)) return embedding_runs(p, memory, dim, ids, first, last, out);
  for (int64_t k = first; k < last; ++k) {
    roast::gather_span(p, memory, ids[k] * dim, dim, out + k * dim);
  }
}

inline int64_t rows_of_part(int64_t dim) { return max64(kPartNumel / dim, 1); }

}  // namespace

extern "C" {

uint32_t roast_kernel_abi(void) { return ROAST_KERNEL_ABI; }

size_t roast_plan_bytes(void) { return sizeof(roast_plan); }

int roast_plan_init(roast_plan* plan, const int64_t* fields, size_t n, float scale, char* message,
                    size_t capacity) {
  roast::Text why(message, capacity);
  Mapping& m = plan->map;
  if (!roast::parse_mapping(fields, n, &m, why)) return 1;
  if (!roast::finite(scale)) {
    why << "scale is not finite";
    return 1;
  }
  if (static_cast<uint64_t>(m.numel) > SIZE_MAX / sizeof(float)) {
    why << "the bytes of " << m.numel << " elements do not fit a size on this machine";
    return 1;
  }
  const int64_t view_rows = m.transposed ? m.cols : m.rows;
  const int64_t view_cols = m.transposed ? m.rows : m.cols;
  plan->scale = scale;
  plan->i0 = m.origin_r / m.tile_r;
  plan->j0 = m.origin_c / m.tile_c;
  plan->grid_i = (m.origin_r + view_rows - 1) / m.tile_r - plan->i0 + 1;
  plan->grid_j = (m.origin_c + view_cols - 1) / m.tile_c - plan->j0 + 1;
  plan->places = roast::places_of(m);
  plan->starts = nullptr;
  plan->order = nullptr;
  plan->signs = nullptr;
  plan->states = nullptr;
  plan->signs_lead = 0;
  plan->isa = &roast::chosen_isa();
  cut_into_parts(plan);
  return 0;
}

size_t roast_plan_table_bytes(const roast_plan* plan) {
  return roast::table_of(*plan).words() * sizeof(uint32_t);
}

void roast_plan_attach_table(roast_plan* plan, void* table) {
  roast::fill_table(plan, static_cast<uint32_t*>(table));
  cut_into_parts(plan);
}

int64_t roast_plan_numel(const roast_plan* plan) { return plan->map.numel; }

int64_t roast_plan_n_memory(const roast_plan* plan) { return plan->map.n_memory; }

size_t roast_gather_parts(const roast_plan* plan) { return static_cast<size_t>(plan->parts); }

void roast_gather_part(const roast_plan* plan, const void* memory, int type, const uint8_t* signs,
                       size_t part, float* out) {
  const int64_t k = static_cast<int64_t>(part);
  if (type == ROAST_FLOAT16) {
    gather_part(*plan, static_cast<const uint16_t*>(memory), signs, k, out);
  } else {
    gather_part(*plan, static_cast<const float*>(memory), signs, k, out);
  }
}

size_t roast_embedding_bad_id(const roast_plan* plan, int64_t dim, const int64_t* ids, size_t n) {
  const int64_t rows = plan->map.numel / dim;
  // Unsigned, a negative id is too large.
  const uint64_t end = static_cast<uint64_t>(rows);
  uint64_t any = 0;
  for (size_t k = 0; k < n; ++k) any |= static_cast<uint64_t>(ids[k]) >= end;
  size_t k = any != 0 ? 0 : n;
  while (k < n && static_cast<uint64_t>(ids[k]) < end) ++k;
  return k;
}

size_t roast_embedding_parts(int64_t dim, size_t n) {
  return static_cast<size_t>(ceil_div(static_cast<int64_t>(n), rows_of_part(dim)));
}

void roast_embedding_part(const roast_plan* plan, const void* memory, int type, int64_t dim,
                          const int64_t* ids, size_t n, size_t part, float* out) {
  const int64_t first = static_cast<int64_t>(part) * rows_of_part(dim);
  const int64_t last = min64(first + rows_of_part(dim), static_cast<int64_t>(n));
  if (type == ROAST_FLOAT16) {
    embedding_part(*plan, static_cast<const uint16_t*>(memory), dim, ids, first, last, out);
  } else {
    embedding_part(*plan, static_cast<const float*>(memory), dim, ids, first, last, out);
  }
}

}  // extern "C"
