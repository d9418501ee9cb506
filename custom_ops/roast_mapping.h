// The mapping of docs/mapping.md: the record, its check, tile starts, signs and the MT19937 stream.
// Twin of roast_export/mapping.py. Freestanding, header-only.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "roast_text.h"

namespace roast {

constexpr int64_t kVersion = 1;
constexpr int64_t kHeaderLength = 32;
constexpr int64_t kMaxDims = 8;
constexpr int64_t kMaxNumel = int64_t{1} << 48;
// What comes before an element of a stream has to be drawn too.
constexpr int64_t kMaxDrawn = int64_t{1} << 30;
constexpr int64_t kMaxMemory = int64_t{1} << 30;
constexpr int64_t kMaxPrime = int64_t{1} << 31;
constexpr int64_t kMaxWord = (int64_t{1} << 32) - 1;

enum Element : int64_t { kHashed = 0, kDrawn32 = 1, kDrawn64 = 2 };
enum Sign : int64_t { kNoSign = 0, kTileSign = 1, kMt19937Sign = 2 };

// Remainders by a number that stays the same: two multiplications instead of a division.
class Divisor {
 public:
  Divisor() = default;
  // 1 <= d < 2^62.
  explicit Divisor(int64_t d)
      : d_(static_cast<uint64_t>(d)), m_(~uint64_t{0} / d_), shift_((uint64_t{1} << 63) % d_) {
    (void)m_;
  }

  // The estimated quotient is right or 1 too small, because m_ is less than 1 below 2^64 / d, or
  // exactly 1 below it.
  uint64_t mod(uint64_t x) const { return once(x - estimate(x) * d_); }

  // Floored: of the signed number with these bits. It is 2^63 less than the number with the top bit
  // turned.
  int64_t floored_mod(uint64_t bits) const {
    const uint64_t rest = mod(bits ^ uint64_t{1} << 63);
    return static_cast<int64_t>(once(rest + (d_ - shift_)));
  }

 private:
#if defined(__x86_64__) || defined(__aarch64__)
  uint64_t estimate(uint64_t x) const {
    __extension__ typedef unsigned __int128 Wide;
    return static_cast<uint64_t>(Wide{x} * m_ >> 64);
  }
#else
  // There, a product of 128 bits is a call of a library.
  uint64_t estimate(uint64_t x) const { return x / d_; }
#endif

  // Without a branch: remainders are random.
  uint64_t once(uint64_t x) const { return x - (d_ & (uint64_t{x < d_} - 1)); }

  uint64_t d_, m_, shift_;
};

// One level of the tile hash; p = 1 means unused.
struct Hash {
  int64_t p, a, b, q, g;
  Divisor mod_p;
};

struct Mapping {
  int64_t element, sign, n_memory, rows, cols, transposed;
  int64_t tile_r, tile_c, origin_r, origin_c;
  Hash hash1, hash2;
  int64_t range, align, seed;
  Hash sign_hash;
  int64_t sign_seed, sign_skip, n_dims;
  int64_t shape[kMaxDims];
  int64_t numel;
  Divisor mod_range;
};

// ---- Arithmetic of mapping.md section 3: wrap-around, floored mod ----

// Unsigned, because signed overflow is undefined in C++.
inline int64_t hash_tile(const Hash& h, int64_t i, int64_t j) {
  const uint64_t ui = static_cast<uint64_t>(i), uj = static_cast<uint64_t>(j);
  const uint64_t mixed = static_cast<uint64_t>(h.a) * ui + static_cast<uint64_t>(h.b) * uj +
                         static_cast<uint64_t>(h.q) * uj * uj + static_cast<uint64_t>(h.g);
  return h.mod_p.floored_mod(mixed);
}

// First array slot of tile (i, j), in [0, n_memory).
inline int64_t tile_start(const Mapping& m, int64_t i, int64_t j) {
  int64_t h = hash_tile(m.hash1, i, j);
  if (m.hash2.p > 1) h = h * m.hash1.p + hash_tile(m.hash2, i, j);  // less than 2^62 + 2^31
  return static_cast<int64_t>(m.mod_range.mod(static_cast<uint64_t>(h))) * m.align;
}

// Section 4, tile signs: true for -1.
inline bool tile_negative(const Mapping& m, int64_t i, int64_t j) {
  return m.sign == kTileSign && hash_tile(m.sign_hash, i, j) % 2 == 1;
}

// ---- Many tiles of one column, for maps of one hash level ----

// One hash along a column j: (a * i + c) mod p, in plain numbers for any instruction set.
struct ColumnHash {
  uint64_t a, c, p, inverse, shift;
};

inline ColumnHash column_hash(const Hash& h, int64_t j) {
  const uint64_t uj = static_cast<uint64_t>(j), p = static_cast<uint64_t>(h.p);
  const uint64_t rest = static_cast<uint64_t>(h.b) * uj + static_cast<uint64_t>(h.q) * uj * uj;
  // Turning the top bit adds 2^63, here once for all: the signed number as an unsigned one.
  const uint64_t top = uint64_t{1} << 63;
  return ColumnHash{static_cast<uint64_t>(h.a), (rest + static_cast<uint64_t>(h.g)) ^ top, p,
                    ~uint64_t{0} / p, p - top % p};
}

struct Column {
  ColumnHash start, sign;
  uint64_t range, inverse_range, align, has_sign;
};

inline Column tile_column(const Mapping& m, int64_t j) {
  const uint64_t range = static_cast<uint64_t>(m.range);
  return Column{column_hash(m.hash1, j), column_hash(m.sign_hash, j),    range,
                kMaxWord / range,        static_cast<uint64_t>(m.align), m.sign == kTileSign};
}

// Whether tile_column describes the map: every number below 2^31 after the first remainder.
inline bool has_columns(const Mapping& m) { return m.element == kHashed && m.hash2.p == 1; }

// The next functions are compiled for several instruction sets, so none may be shared; products are
// of 32 bits, which all of them have for vectors.
#define ROAST_LANE static inline __attribute__((always_inline))

ROAST_LANE uint64_t low_word(uint64_t x) { return x & 0xffffffffu; }

ROAST_LANE uint64_t high_product(uint64_t x, uint64_t y) {
  const uint64_t x0 = low_word(x), x1 = x >> 32, y0 = low_word(y), y1 = y >> 32;
  const uint64_t middle = x1 * y0 + (x0 * y0 >> 32);
  return x1 * y1 + (middle >> 32) + ((x0 * y1 + low_word(middle)) >> 32);
}

ROAST_LANE uint64_t less_once(uint64_t x, uint64_t d) { return x < d ? x : x - d; }

// hash_tile of tile row i. The estimated quotients are right or 1 too small, as in Divisor; a rest
// of less than 2 p <= 2^32 needs no more than the low words.
ROAST_LANE uint64_t hash_row(const ColumnHash& h, uint64_t i) {
  const uint64_t x = h.a * i + h.c;
#if defined(__x86_64__) || defined(__aarch64__)
  const uint64_t quotient = high_product(x, h.inverse);
#else
  // There, compilers see a product of 128 bits in it, which is a call of a library.
  const uint64_t quotient = x / h.p;
#endif
  const uint64_t rest = less_once(low_word(x - low_word(quotient) * h.p), h.p);
  return less_once(rest + h.shift, h.p);
}

// The start of tile row i, with its sign in the top bit.
ROAST_LANE uint32_t start_of_row(const Column& column, uint64_t i) {
  const uint64_t h = hash_row(column.start, i);
  const uint64_t quotient = h * column.inverse_range >> 32;
  const uint64_t start = less_once(h - quotient * column.range, column.range) * column.align;
  const uint64_t negative = hash_row(column.sign, i) & column.has_sign;
  return static_cast<uint32_t>(start | negative << 31);
}

// ---- MT19937 (Matsumoto, Nishimura 1998), as raw 32-bit outputs ----

constexpr int kMtWords = 624;

ROAST_LANE uint32_t mt_twist(uint32_t high, uint32_t low, uint32_t far) {
  const uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
  return far ^ (y >> 1) ^ ((0u - (y & 1u)) & 0x9908b0dfu);
}

// The next block of a state, in loops that vectorise: what one reads another step writes later, or
// wrote at least 227 words ago.
ROAST_LANE void mt_refill(uint32_t* state) {
  constexpr int kFar = 397, kBack = kMtWords - kFar;
  for (int n = 0; n < kBack; ++n) state[n] = mt_twist(state[n], state[n + 1], state[n + kFar]);
  for (int n = kBack; n < kMtWords - 1; ++n) {
    state[n] = mt_twist(state[n], state[n + 1], state[n - kBack]);
  }
  state[kMtWords - 1] = mt_twist(state[kMtWords - 1], state[0], state[kFar - 1]);
}

ROAST_LANE uint32_t mt_temper(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// A place in a stream. Its words are handed out in blocks, before tempering.
class Mt19937 {
 public:
  static constexpr int kSavedWords = kMtWords + 1;
  // mt_refill, for some instruction set.
  typedef void (*Refill)(uint32_t* state);

  Mt19937(uint32_t seed, Refill refill) : refill_(refill), place_(kMtWords) {
    state_[0] = seed;
    for (int n = 1; n < kMtWords; ++n) {
      const uint32_t last = state_[n - 1];
      state_[n] = 1812433253u * (last ^ (last >> 30)) + static_cast<uint32_t>(n);
    }
  }

  Mt19937(const uint32_t* saved, Refill refill) : refill_(refill), place_(saved[kMtWords]) {
    for (int n = 0; n < kMtWords; ++n) state_[n] = saved[n];
  }

  void save(uint32_t* saved) const {
    for (int n = 0; n < kMtWords; ++n) saved[n] = state_[n];
    saved[kMtWords] = place_;
  }

  void skip(uint64_t n) {
    while (n > kMtWords - place_) {
      n -= kMtWords - place_;
      refill_(state_);
      place_ = 0;
    }
    place_ += static_cast<uint32_t>(n);
  }

  // The next words, up to the end of their block: at least one. skip() goes past them.
  const uint32_t* words(int64_t* n) {
    if (place_ == kMtWords) {
      refill_(state_);
      place_ = 0;
    }
    *n = kMtWords - place_;
    return state_ + place_;
  }

 private:
  Refill refill_;
  uint32_t place_;
  uint32_t state_[kMtWords];
};

// ---- The flat list of section 5 and the rules of section 2, in their order ----

inline bool in(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

inline bool unused(const Hash& h) {
  return h.p == 1 && h.a == 0 && h.b == 0 && h.q == 0 && h.g == 0;
}

inline Hash read_hash(const int64_t* f) { return Hash{f[0], f[1], f[2], f[3], f[4], Divisor(1)}; }

inline void read_fields(const int64_t* f, Mapping* m) {
  m->element = f[1];
  m->sign = f[2];
  m->n_memory = f[3];
  m->rows = f[4];
  m->cols = f[5];
  m->transposed = f[6];
  m->tile_r = f[7];
  m->tile_c = f[8];
  m->origin_r = f[9];
  m->origin_c = f[10];
  m->hash1 = read_hash(f + 11);
  m->hash2 = read_hash(f + 16);
  m->range = f[21];
  m->align = f[22];
  m->seed = f[23];
  m->sign_hash = read_hash(f + 24);
  m->sign_seed = f[29];
  m->sign_skip = f[30];
  m->n_dims = f[31];
  for (int64_t d = 0; d < m->n_dims; ++d) m->shape[d] = f[kHeaderLength + d];
}

inline bool check_shape(Mapping* m, Text& why) {
  m->numel = 1;
  for (int64_t d = 0; d < m->n_dims; ++d) {
    if (m->shape[d] < 1) {
      why << "dimension " << d << " of shape is " << m->shape[d] << ", it must be at least 1";
      return false;
    }
    if (m->shape[d] > kMaxNumel / m->numel) {
      why << "shape has more than 2^48 elements";
      return false;
    }
    m->numel *= m->shape[d];
  }
  if (m->rows < 1 || m->cols < 1 || m->numel % m->rows != 0 || m->numel / m->rows != m->cols) {
    why << "matrix " << m->rows << "x" << m->cols << " does not hold the " << m->numel
        << " elements of shape";
    return false;
  }
  return true;
}

inline bool check_tile(const Mapping& m, Text& why) {
  if (!in(m.n_memory, 1, kMaxMemory)) {
    why << "n_memory " << m.n_memory << " is not in [1, 2^30]";
    return false;
  }
  if (m.tile_r < 1 || m.tile_c < 1) {
    why << "tile " << m.tile_r << "x" << m.tile_c << " must be at least 1x1";
    return false;
  }
  if (m.tile_r > m.n_memory / m.tile_c) {
    why << "tile " << m.tile_r << "x" << m.tile_c << " needs ";
    const bool printable = m.tile_r <= kMaxPrime && m.tile_c <= kMaxPrime;
    if (printable) {
      why << m.tile_r * m.tile_c << " slots";
    } else {
      why << "too many slots";
    }
    why << ", the array has " << m.n_memory << "; use a smaller tile or a larger array";
    return false;
  }
  if (!in(m.origin_r, 0, kMaxNumel) || !in(m.origin_c, 0, kMaxNumel)) {
    why << "origin " << m.origin_r << " " << m.origin_c << " is not in [0, 2^48]";
    return false;
  }
  return true;
}

inline bool check_hash(const char* name, const Hash& h, Text& why) {
  if (!in(h.p, 1, kMaxPrime)) {
    why << name << " has modulus " << h.p << ", not in [1, 2^31]";
    return false;
  }
  if (h.p == 1 && !unused(h)) {
    why << name << " has modulus 1 but is not all 0";
    return false;
  }
  return true;
}

inline bool check_seeds(const Mapping& m, Text& why) {
  if ((m.element != kHashed || m.sign == kMt19937Sign) && m.numel > kMaxDrawn) {
    why << "a weight whose slots or signs are drawn has " << m.numel << " elements, at most 2^30";
    return false;
  }
  if (!in(m.seed, 0, kMaxWord) || !in(m.sign_seed, 0, kMaxWord)) {
    why << "a seed is not in [0, 2^32): seed " << m.seed << ", sign_seed " << m.sign_seed;
    return false;
  }
  if (!in(m.sign_skip, 0, 2 * m.numel)) {
    why << "sign_skip " << m.sign_skip << " is not in [0, 2 * elements]";
    return false;
  }
  if (m.sign != kMt19937Sign && (m.sign_seed != 0 || m.sign_skip != 0)) {
    why << "sign_seed and sign_skip belong to mt19937 signs only";
    return false;
  }
  return true;
}

inline bool check_hashed(const Mapping& m, Text& why) {
  if (m.range - 1 > (m.n_memory - 1) / m.align) {
    why << "range " << m.range << " with align " << m.align << " starts tiles past the array's "
        << m.n_memory << " slots";
    return false;
  }
  if (m.seed != 0) {
    why << "a hashed map has no seed";
    return false;
  }
  return true;
}

inline bool check_drawn(const Mapping& m, Text& why) {
  if (!unused(m.hash1) || !unused(m.hash2) || m.tile_r != 1 || m.tile_c != 1 || m.align != 1 ||
      m.transposed != 0) {
    why << "a drawn map has no hash, tile, align or transposed view";
    return false;
  }
  if (m.origin_r != 0 || m.origin_c != 0 || m.range > kMaxWord + 1) {
    why << "a drawn map has no origin, and range is at most 2^32";
    return false;
  }
  if (m.sign == kTileSign) {
    why << "a drawn map has no tiles and so no tile signs";
    return false;
  }
  return true;
}

inline bool check_kind(const Mapping& m, Text& why) {
  if (!in(m.element, 0, 2) || !in(m.sign, 0, 2) || !in(m.transposed, 0, 1)) {
    why << "an unknown kind of map, sign or view: element " << m.element << ", sign " << m.sign
        << ", transposed " << m.transposed;
    return false;
  }
  return true;
}

// True, and a mapping that every rule holds for; or false, and why.
inline bool parse_mapping(const int64_t* fields, size_t n, Mapping* m, Text& why) {
  const int64_t length = static_cast<int64_t>(n);
  if (!in(length, kHeaderLength + 1, kHeaderLength + kMaxDims) ||
      fields[kHeaderLength - 1] != length - kHeaderLength) {
    why << "a mapping list of " << length << " integers has the wrong length";
    return false;
  }
  if (fields[0] != kVersion) {
    why << "mapping version " << fields[0] << " is not known here (this is version " << kVersion
        << "); upgrade the roast library";
    return false;
  }
  read_fields(fields, m);
  if (!check_kind(*m, why) || !check_shape(m, why) || !check_tile(*m, why)) return false;
  if (m->range < 1 || m->align < 1) {
    why << "range " << m->range << " and align " << m->align << " must be at least 1";
    return false;
  }
  if (!check_hash("hash1", m->hash1, why) || !check_hash("hash2", m->hash2, why) ||
      !check_hash("sign_hash", m->sign_hash, why) || !check_seeds(*m, why)) {
    return false;
  }
  if (!(m->element == kHashed ? check_hashed(*m, why) : check_drawn(*m, why))) return false;
  if ((m->sign == kTileSign) == unused(m->sign_hash)) {
    why << "sign_hash belongs to tile signs, and tile signs need it";
    return false;
  }
  m->hash1.mod_p = Divisor(m->hash1.p);
  m->hash2.mod_p = Divisor(m->hash2.p);
  m->sign_hash.mod_p = Divisor(m->sign_hash.p);
  m->mod_range = Divisor(m->range);
  return true;
}

}  // namespace roast
