// The optional table of a plan: what pays to keep, and how it is filled.
#pragma once

#include "roast_gather.h"
#include "roast_order.h"
#include "roast_plan.h"
#include "roast_stream.h"

namespace roast {

// Beyond this, filling a table takes longer than a caller would wait for it at load.
constexpr int64_t kMaxTableTiles = int64_t{1} << 26;
constexpr int64_t kMaxTableNumel = int64_t{1} << 28;
// Below this, what rounds sizes up would exceed an eighth of the weight.
constexpr int64_t kLeastTableNumel = 64;

// Its parts in their order, in 32-bit words; 0 where a part does not pay.
struct Table {
  int64_t starts, order, signs, states;
  size_t words() const { return static_cast<size_t>(starts + order + signs + states); }
};

// Bits of signs are read, and written, a few bytes at a time: there is a word behind them.
inline int64_t sign_words(const Mapping& m) {
  return draws_signs(m) ? (sign_lead(m) + m.numel + 31) / 32 + 1 : 0;
}

inline Table table_of(const roast_plan& p) {
  const Mapping& m = p.map;
  const int64_t tiles = p.grid_i * p.grid_j;
  const bool starts = !draws_elements(m) && tiles <= m.numel / 16 && tiles <= kMaxTableTiles;
  const bool streams = m.numel <= kMaxTableNumel && m.numel >= kLeastTableNumel;
  const bool states = streams && draws_elements(m) && m.numel > kSpanNumel;
  return Table{starts ? tiles : 0, starts && has_order(p) ? tiles : 0, streams ? sign_words(m) : 0,
               states ? ceil_div(m.numel, kSpanNumel) * kSaved : 0};
}

inline void fill_starts(const roast_plan& p, uint32_t* next) {
  for (int64_t i = p.i0; i < p.i0 + p.grid_i; ++i) {
    for (int64_t j = p.j0; j < p.j0 + p.grid_j; ++j) *next++ = packed_start(p, i, j);
  }
}

inline void fill_states(const roast_plan& p, uint32_t* slot) {
  const Mapping& m = p.map;
  Mt19937 generator(static_cast<uint32_t>(m.seed), p.isa->refill);
  for (int64_t e = 0; e < m.numel; e += kSpanNumel, slot += kSaved) {
    generator.save(slot);
    generator.skip(static_cast<uint64_t>(kSpanNumel * element_width(m)));
  }
}

// ---- Signs in the order of a transposed view ----

// Byte c of the result has bit c of byte r as bit r (Warren, Hacker's Delight, section 7-3).
inline uint64_t transpose_bits(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aau;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccu;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0u;
  return x ^ t ^ (t << 28);
}

// Puts 8 bits into zeros.
inline void put_byte(uint8_t* bits, int64_t at, uint32_t byte) {
  const uint32_t both = byte << (at & 7);
  bits[at >> 3] = static_cast<uint8_t>(bits[at >> 3] | both);
  bits[(at >> 3) + 1] = static_cast<uint8_t>(bits[(at >> 3) + 1] | both >> 8);
}

// Columns [c, c + n) of `rows` rows from r on, whose signs follow each other.
inline void put_rows(const Mapping& m, const Signs& signs, int64_t r, int64_t rows, int64_t c,
                     int64_t n, uint8_t* bits) {
  for (int64_t k = 0; k < n; k += 8) {
    uint64_t block = 0;
    for (int64_t row = 0; row < rows; ++row) {
      block |= uint64_t{bits_at(signs.bits, signs.first + row * n + k) & 0xffu} << 8 * row;
    }
    block = transpose_bits(block);
    for (int64_t column = k; column < min64(k + 8, n); ++column, block >>= 8) {
      put_byte(bits, (c + column) * m.rows + r, static_cast<uint32_t>(block & 0xffu));
    }
  }
}

// Eight rows of the matrix are a byte of each row of the view; very long rows are put one by one.
inline void fill_transposed_signs(const roast_plan& p, uint8_t* bits) {
  using Stream = SignStream<1 << 14>;
  const Mapping& m = p.map;
  const int64_t at_once = 8 * m.cols <= Stream::kNumel ? 8 : 1;
  const int64_t width = min64(m.cols, Stream::kNumel);
  Stream stream(p, 0);
  for (int64_t r = 0; r < m.rows; r += at_once) {
    const int64_t rows = min64(at_once, m.rows - r);
    for (int64_t c = 0; c < m.cols; c += width) {
      const int64_t n = min64(width, m.cols - c);
      put_rows(m, stream.next(rows * n), r, rows, c, n, bits);
    }
  }
}

inline void fill_signs(const roast_plan& p, uint32_t* words) {
  for (int64_t k = 0; k < sign_words(p.map); ++k) words[k] = 0;
  uint8_t* bits = reinterpret_cast<uint8_t*>(words);
  if (p.map.transposed) return fill_transposed_signs(p, bits);
  Mt19937 generator = sign_generator(p, 0);
  draw_sign_bytes(*p.isa, &generator, (sign_lead(p.map) + p.map.numel + 7) / 8, bits);
}

inline void fill_table(roast_plan* p, uint32_t* words) {
  const Table table = table_of(*p);
  uint32_t* order = words + table.starts;
  uint32_t* signs = order + table.order;
  uint32_t* states = signs + table.signs;
  // Nothing that is filled is read before it is whole.
  p->starts = nullptr;
  p->order = nullptr;
  p->signs = nullptr;
  p->states = nullptr;
  if (table.starts > 0) fill_starts(*p, words);
  if (table.order > 0) fill_order(*p, words, order);
  if (table.signs > 0) fill_signs(*p, signs);
  if (table.states > 0) fill_states(*p, states);
  if (table.starts > 0) p->starts = words;
  if (table.order > 0) p->order = order;
  if (table.signs > 0) p->signs = reinterpret_cast<const uint8_t*>(signs);
  if (table.states > 0) p->states = states;
  p->signs_lead = p->map.transposed ? 0 : sign_lead(p->map);
}

}  // namespace roast
