// See roast_kernel.h. Plans, gathers and embeddings.
#include "roast_kernel.h"

#include "roast_gather.h"
#include "roast_mapping.h"
#include "roast_plan.h"

using roast::ceil_div;
using roast::draws;
using roast::draws_elements;
using roast::draws_signs;
using roast::element_width;
using roast::kSaved;
using roast::kSpanNumel;
using roast::Mapping;
using roast::max64;
using roast::min64;
using roast::Mt19937;
using roast::negate_if;
using roast::Rect;

namespace {

// Elements of a part: long enough to pay for handing it to a thread, short enough to balance.
constexpr int64_t kPartNumel = int64_t{1} << 15;
// Beyond this, filling a table takes longer than a caller would wait for it at load.
constexpr int64_t kMaxTableTiles = int64_t{1} << 26;
constexpr int64_t kMaxTableNumel = int64_t{1} << 28;

void fill_states(const roast_plan& p, uint32_t* states) {
  const Mapping& m = p.map;
  for (int which = 0; which < 2; ++which) {
    const bool signs = which == 1;
    if (!(signs ? draws_signs(m) : draws_elements(m))) continue;
    Mt19937 generator(static_cast<uint32_t>(signs ? m.sign_seed : m.seed));
    if (signs) generator.skip(static_cast<uint64_t>(m.sign_skip));
    const int64_t step = kSpanNumel * (signs ? 1 : element_width(m));
    uint32_t* slot = states + (signs && draws_elements(m) ? kSaved : 0);
    for (int64_t e = 0; e < m.numel; e += kSpanNumel, slot += roast::streams(m) * kSaved) {
      generator.save(slot);
      generator.skip(static_cast<uint64_t>(step));
    }
  }
}

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

// A part holds a span, so that its generators can be where it starts. Without saved states, each
// part would have to draw all that lies before it: then the whole weight is one part.
void cut_into_parts(roast_plan* p) {
  if (!draws(p->map)) return cut_into_rects(p);
  p->parts = p->states != nullptr ? ceil_div(p->map.numel, kSpanNumel) : 1;
}

Rect rect_of_part(const roast_plan& p, int64_t part) {
  const int64_t r = part / p.parts_across * p.part_rows - p.lead_rows;
  const int64_t c = part % p.parts_across * p.part_cols - p.lead_cols;
  return Rect{max64(r, 0), min64(r + p.part_rows, p.map.rows), max64(c, 0),
              min64(c + p.part_cols, p.map.cols)};
}

void apply_given_signs(const uint8_t* signs, int64_t e, int64_t n, float* out) {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t place = e + k;
    const uint32_t positive = static_cast<uint32_t>(signs[place / 8]) >> (place % 8) & 1u;
    out[k] = negate_if(positive ^ 1u, out[k]);
  }
}

template <class T>
void gather_part(const roast_plan& p, const T* memory, const uint8_t* signs, int64_t part,
                 float* out) {
  const Mapping& m = p.map;
  if (draws(m)) {
    const int64_t e = part * kSpanNumel;
    const int64_t n = p.states != nullptr ? min64(kSpanNumel, m.numel - e) : m.numel;
    roast::gather_span(p, memory, e, n, out + e);
    if (signs != nullptr) apply_given_signs(signs, e, n, out + e);
    return;
  }
  const Rect rect = rect_of_part(p, part);
  roast::gather_rect(p, memory, rect, m.transposed == 1, out + rect.r0 * m.cols + rect.c0, m.cols);
  for (int64_t r = rect.r0; signs != nullptr && r < rect.r1; ++r) {
    const int64_t e = r * m.cols + rect.c0;
    apply_given_signs(signs, e, rect.c1 - rect.c0, out + e);
  }
}

// All starts of some rows first: hashes in vectors, and the processor fetches many runs at a time.
constexpr int64_t kRuns = 1024;

// Whether a row of an embedding is made of whole tiles of one row each, none of which runs over the
// end of the array.
bool rows_are_runs(const Mapping& m, int64_t dim) {
  return roast::has_columns(m) && !draws(m) && m.transposed == 0 && m.cols == dim &&
         m.tile_r == 1 && dim % m.tile_c == 0 && dim / m.tile_c <= kRuns &&
         m.origin_c % m.tile_c == 0 && (m.range - 1) * m.align + m.tile_c <= m.n_memory;
}

template <class T>
void embedding_runs(const roast_plan& p, const T* memory, int64_t dim, const int64_t* ids,
                    int64_t first, int64_t last, float* out) {
  const Mapping& m = p.map;
  const int64_t across = dim / m.tile_c, most = kRuns / across;
  uint32_t packed[kRuns];
  for (int64_t k = first; k < last; k += most) {
    const int64_t n = min64(most, last - k);
    for (int64_t j = 0; j < across; ++j) {
      const roast::Column column = roast::tile_column(m, m.origin_c / m.tile_c + j);
      p.isa->starts(column, ids + k, m.origin_r, n, packed + j * n);
    }
    for (int64_t run = 0; run < n * across; ++run) {
      __builtin_prefetch(memory + (packed[run] & ~roast::kNegative));
    }
    roast::ops_of<T>(p).runs(memory, packed, n, across, m.tile_c, p.scale, out + k * dim);
  }
}

template <class T>
void embedding_part(const roast_plan& p, const T* memory, int64_t dim, const int64_t* ids,
                    int64_t first, int64_t last, float* out) {
  if (rows_are_runs(p.map, dim)) return embedding_runs(p, memory, dim, ids, first, last, out);
  for (int64_t k = first; k < last; ++k) {
    roast::gather_span(p, memory, ids[k] * dim, dim, out + k * dim);
  }
}

inline int64_t rows_of_part(int64_t dim) { return max64(kPartNumel / dim, 1); }

// Tiles in the table: 0 if it would be larger than a quarter of the dense weight.
int64_t table_tiles(const roast_plan& p) {
  if (draws_elements(p.map)) return 0;
  const int64_t tiles = p.grid_i * p.grid_j;
  return tiles <= p.map.numel / 16 && tiles <= kMaxTableTiles ? tiles : 0;
}

int64_t table_states(const roast_plan& p) {
  if (p.map.numel > kMaxTableNumel || p.map.numel <= kSpanNumel) return 0;
  return roast::streams(p.map) * ceil_div(p.map.numel, kSpanNumel);
}

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
  plan->starts = nullptr;
  plan->states = nullptr;
  plan->isa = &roast::chosen_isa();
  cut_into_parts(plan);
  return 0;
}

size_t roast_plan_table_bytes(const roast_plan* plan) {
  return static_cast<size_t>(table_tiles(*plan) + table_states(*plan) * kSaved) * sizeof(uint32_t);
}

void roast_plan_attach_table(roast_plan* plan, void* table) {
  uint32_t* words = static_cast<uint32_t*>(table);
  const bool with_starts = table_tiles(*plan) > 0, with_states = table_states(*plan) > 0;
  uint32_t* states = words + table_tiles(*plan);
  if (with_starts) {
    plan->starts = nullptr;
    uint32_t* next = words;
    for (int64_t i = plan->i0; i < plan->i0 + plan->grid_i; ++i) {
      for (int64_t j = plan->j0; j < plan->j0 + plan->grid_j; ++j) {
        *next++ = roast::packed_start(*plan, i, j);
      }
    }
  }
  if (with_states) fill_states(*plan, states);
  plan->starts = with_starts ? words : nullptr;
  plan->states = with_states ? states : nullptr;
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
