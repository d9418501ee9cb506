// See roast_kernel.h. Portable C++; instruction sets enter through roast_tiles.h alone.
#include "roast_kernel.h"

#include "roast_mapping.h"
#include "roast_tiles.h"

using roast::load;
using roast::Mapping;
using roast::Mt19937;
using roast::negate_if;
using roast::Piece;
using roast::Tiles;

namespace {

// Elements of a part: long enough to pay for handing it to a thread, short enough to balance.
constexpr int64_t kPartNumel = int64_t{1} << 15;
// A saved state takes 2500 bytes: at this distance it costs 1% of the dense weight.
constexpr int64_t kSpanNumel = int64_t{1} << 16;
// Beyond this, filling a table takes longer than a caller would wait for it at load.
constexpr int64_t kMaxTableTiles = int64_t{1} << 26;
constexpr int64_t kMaxTableNumel = int64_t{1} << 28;
// The sign of a tile, on top of its start, which is less than 2^30.
constexpr uint32_t kNegative = 0x80000000u;

struct Rect {
  int64_t r0, r1, c0, c1;
};

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

struct roast_plan {
  Mapping map;
  float scale;
  // Number of the first tile that the view touches, and how many.
  int64_t i0, j0, grid_i, grid_j;
  // Parts: rectangles of the matrix, the first of them cut by `lead_*`, so that no tile is cut.
  int64_t part_rows, part_cols, lead_rows, lead_cols, parts_across, parts;
  // The table: starts with the sign in the top bit, and generator states at every span.
  const uint32_t* starts;
  const uint32_t* states;
  Tiles<float> tiles_f32;
  Tiles<uint16_t> tiles_f16;
};

namespace {

inline const Tiles<float>& tiles_of(const roast_plan& p, const float*) { return p.tiles_f32; }
inline const Tiles<uint16_t>& tiles_of(const roast_plan& p, const uint16_t*) { return p.tiles_f16; }

inline bool draws_elements(const Mapping& m) { return m.element != roast::kHashed; }
inline bool draws_signs(const Mapping& m) { return m.sign == roast::kMt19937Sign; }
inline bool draws(const Mapping& m) { return draws_elements(m) || draws_signs(m); }
inline int64_t element_width(const Mapping& m) { return m.element == roast::kDrawn64 ? 2 : 1; }

// ---- Hashed maps ----

inline uint32_t packed_start(const roast_plan& p, int64_t i, int64_t j) {
  if (p.starts != nullptr) return p.starts[(i - p.i0) * p.grid_j + (j - p.j0)];
  const uint32_t start = static_cast<uint32_t>(roast::tile_start(p.map, i, j));
  return roast::tile_negative(p.map, i, j) ? start | kNegative : start;
}

// A piece that runs over the end of the array: split each run, or step by element.
template <class T>
void place_wrapped(const roast_plan& p, const T* memory, int64_t first, int64_t rows, int64_t cols,
                   float factor, float* out, int64_t out_stride) {
  const int64_t n = p.map.n_memory;
  for (int64_t r = 0; r < rows; ++r, first += p.map.tile_c) {
    if (p.map.transposed) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t index = first + c < n ? first + c : first + c - n;
        out[c * out_stride + r] = load(memory[index]) * factor;
      }
      continue;
    }
    const int64_t begin = first < n ? first : first - n;
    const int64_t before_end = min64(cols, n - begin);
    float* to = out + r * out_stride;
    roast::copy_piece(Piece<T>{memory + begin, 0, 1, before_end}, factor, to, 0);
    roast::copy_piece(Piece<T>{memory, 0, 1, cols - before_end}, factor, to + before_end, 0);
  }
}

// Rows x cols of tile `packed`, from (inner_r, inner_c) of it on.
template <class T>
void place_tile(const roast_plan& p, const T* memory, uint32_t packed, int64_t inner_r,
                int64_t inner_c, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  const Mapping& m = p.map;
  const float factor = negate_if(packed >> 31, p.scale);
  int64_t first = (packed & ~kNegative) + inner_r * m.tile_c + inner_c;
  if (first >= m.n_memory) first -= m.n_memory;
  if (first + (rows - 1) * m.tile_c + cols > m.n_memory) {
    return place_wrapped(p, memory, first, rows, cols, factor, out, out_stride);
  }
  const Piece<T> piece{memory + first, m.tile_c, rows, cols};
  const Tiles<T>& tiles = tiles_of(p, memory);
  (m.transposed ? tiles.transpose : tiles.copy)(piece, factor, out, out_stride);
}

// A row of 1x1 tiles: one hash an element and nothing else.
template <class T>
void gather_elements(const roast_plan& p, const T* memory, const Rect& view, float* out,
                     int64_t step_r, int64_t step_c) {
  for (int64_t r = view.r0; r < view.r1; ++r) {
    float* to = out + (r - view.r0) * step_r;
    for (int64_t c = view.c0; c < view.c1; ++c, to += step_c) {
      const uint32_t packed = packed_start(p, r, c);
      *to = load(memory[packed & ~kNegative]) * negate_if(packed >> 31, p.scale);
    }
  }
}

// A rectangle of the matrix; `out` is its corner, rows `stride` apart.
template <class T>
void gather_rect(const roast_plan& p, const T* memory, const Rect& rect, float* out,
                 int64_t stride) {
  const Mapping& m = p.map;
  Rect v = m.transposed ? Rect{rect.c0, rect.c1, rect.r0, rect.r1} : rect;
  v = Rect{v.r0 + m.origin_r, v.r1 + m.origin_r, v.c0 + m.origin_c, v.c1 + m.origin_c};
  const int64_t step_r = m.transposed ? 1 : stride, step_c = m.transposed ? stride : 1;
  if (m.tile_r == 1 && m.tile_c == 1) {
    return gather_elements(p, memory, v, out, step_r, step_c);
  }
  for (int64_t r = v.r0; r < v.r1;) {
    const int64_t i = r / m.tile_r, inner_r = r % m.tile_r;
    const int64_t rows = min64(m.tile_r - inner_r, v.r1 - r);
    for (int64_t c = v.c0; c < v.c1;) {
      const int64_t j = c / m.tile_c, inner_c = c % m.tile_c;
      const int64_t cols = min64(m.tile_c - inner_c, v.c1 - c);
      place_tile(p, memory, packed_start(p, i, j), inner_r, inner_c, rows, cols,
                 out + (r - v.r0) * step_r + (c - v.c0) * step_c, stride);
      c += cols;
    }
    r += rows;
  }
}

// Elements [e, e + n) in row-major order: the end of a row, whole rows, the start of a row.
template <class T>
void gather_hashed_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  const int64_t cols = p.map.cols;
  while (n > 0) {
    const int64_t r = e / cols, c = e % cols;
    const bool whole = c == 0 && n >= cols;
    const int64_t rows = whole ? n / cols : 1;
    const int64_t width = whole ? cols : min64(cols - c, n);
    gather_rect(p, memory, Rect{r, r + rows, c, c + width}, out, cols);
    e += rows * width;
    n -= rows * width;
    out += rows * width;
  }
}

// ---- Streams ----

constexpr int64_t kSaved = Mt19937::kSavedWords;

inline int64_t streams(const Mapping& m) {
  return (draws_elements(m) ? 1 : 0) + (draws_signs(m) ? 1 : 0);
}

// The generator of elements (`signs` false) or signs, just before element e.
Mt19937 generator_at(const roast_plan& p, bool signs, int64_t e) {
  const Mapping& m = p.map;
  const int64_t width = signs ? 1 : element_width(m);
  if (p.states != nullptr) {
    const int64_t slot = e / kSpanNumel * streams(m) + (signs && draws_elements(m) ? 1 : 0);
    Mt19937 generator(p.states + slot * kSaved);
    generator.skip(static_cast<uint64_t>(e % kSpanNumel * width));
    return generator;
  }
  Mt19937 generator(static_cast<uint32_t>(signs ? m.sign_seed : m.seed));
  generator.skip(static_cast<uint64_t>((signs ? m.sign_skip : 0) + e * width));
  return generator;
}

template <class T>
void gather_drawn_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  const uint64_t range = static_cast<uint64_t>(p.map.range);
  const uint64_t n_memory = static_cast<uint64_t>(p.map.n_memory);
  const bool wide = p.map.element == roast::kDrawn64;
  Mt19937 generator = generator_at(p, false, e);
  for (int64_t k = 0; k < n; ++k) {
    uint64_t draw = generator.next();
    if (wide) draw = draw << 32 | generator.next();
    out[k] = load(memory[draw % range % n_memory]) * p.scale;
  }
}

void apply_drawn_signs(const roast_plan& p, int64_t e, int64_t n, float* out) {
  Mt19937 generator = generator_at(p, true, e);
  for (int64_t k = 0; k < n; ++k) {
    out[k] = negate_if(~generator.next() & 1u, out[k]);
  }
}

template <class T>
void gather_span(const roast_plan& p, const T* memory, int64_t e, int64_t n, float* out) {
  if (draws_elements(p.map)) {
    gather_drawn_span(p, memory, e, n, out);
  } else {
    gather_hashed_span(p, memory, e, n, out);
  }
  if (draws_signs(p.map)) apply_drawn_signs(p, e, n, out);
}

void fill_states(const roast_plan& p, uint32_t* states) {
  const Mapping& m = p.map;
  for (int which = 0; which < 2; ++which) {
    const bool signs = which == 1;
    if (!(signs ? draws_signs(m) : draws_elements(m))) continue;
    Mt19937 generator(static_cast<uint32_t>(signs ? m.sign_seed : m.seed));
    if (signs) generator.skip(static_cast<uint64_t>(m.sign_skip));
    const int64_t step = kSpanNumel * (signs ? 1 : element_width(m));
    uint32_t* slot = states + (signs && draws_elements(m) ? kSaved : 0);
    for (int64_t e = 0; e < m.numel; e += kSpanNumel, slot += streams(m) * kSaved) {
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
    gather_span(p, memory, e, n, out + e);
    if (signs != nullptr) apply_given_signs(signs, e, n, out + e);
    return;
  }
  const Rect rect = rect_of_part(p, part);
  gather_rect(p, memory, rect, out + rect.r0 * m.cols + rect.c0, m.cols);
  for (int64_t r = rect.r0; signs != nullptr && r < rect.r1; ++r) {
    const int64_t e = r * m.cols + rect.c0;
    apply_given_signs(signs, e, rect.c1 - rect.c0, out + e);
  }
}

template <class T>
void embedding_part(const roast_plan& p, const T* memory, int64_t dim, const int64_t* ids,
                    int64_t first, int64_t last, float* out) {
  for (int64_t k = first; k < last; ++k) {
    gather_span(p, memory, ids[k] * dim, dim, out + k * dim);
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
  return streams(p.map) * ceil_div(p.map.numel, kSpanNumel);
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
  plan->tiles_f32 = roast::choose_tiles<float>();
  plan->tiles_f16 = roast::choose_tiles<uint16_t>();
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
        *next++ = packed_start(*plan, i, j);
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
  size_t k = 0;
  while (k < n && ids[k] >= 0 && ids[k] < rows) ++k;
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
