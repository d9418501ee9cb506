// What a map draws from MT19937 streams: slots, and signs as bits (docs/mapping.md sections 3, 4).
#pragma once

#include "roast_elements.h"
#include "roast_plan.h"

namespace roast {

inline bool draws_elements(const Mapping& m) { return m.element != roast::kHashed; }
inline bool draws_signs(const Mapping& m) { return m.sign == roast::kMt19937Sign; }
inline int64_t element_width(const Mapping& m) { return m.element == roast::kDrawn64 ? 2 : 1; }

// Whether rows have to be made in their order, for a stream that is not in a table.
inline bool in_order(const roast_plan& p) {
  return draws_elements(p.map) || (draws_signs(p.map) && p.signs == nullptr);
}

// ---- Slots ----

constexpr int64_t kSaved = Mt19937::kSavedWords;

inline Mt19937 slot_generator(const roast_plan& p, int64_t e) {
  const int64_t width = element_width(p.map);
  if (p.states != nullptr) {
    Mt19937 generator(p.states + e / kSpanNumel * kSaved, p.isa->refill);
    generator.skip(static_cast<uint64_t>(e % kSpanNumel * width));
    return generator;
  }
  Mt19937 generator(static_cast<uint32_t>(p.map.seed), p.isa->refill);
  generator.skip(static_cast<uint64_t>(e * width));
  return generator;
}

// The slots of a drawn map, from element e on.
class SlotStream {
 public:
  SlotStream(const roast_plan& p, int64_t e)
      : generator_(slot_generator(p, e)),
        temper_(p.isa->temper),
        range_(p.map.mod_range),
        memory_(p.map.n_memory),
        wide_(p.map.element == roast::kDrawn64) {}

  uint64_t next() {
    uint64_t word = draw();
    if (wide_) word = word << 32 | draw();
    return memory_.mod(range_.mod(word));
  }

 private:
  uint32_t draw() {
    if (place_ == n_) {
      const uint32_t* words = generator_.words(&n_);
      temper_(words, n_, draws_);
      generator_.skip(static_cast<uint64_t>(n_));
      place_ = 0;
    }
    return draws_[place_++];
  }

  Mt19937 generator_;
  void (*temper_)(const uint32_t*, int64_t, uint32_t*);
  Divisor range_, memory_;
  bool wide_;
  int64_t place_ = 0, n_ = 0;
  uint32_t draws_[kMtWords];
};

// ---- Signs ----

// Blocks of a stream end at whole bytes, so bits are drawn by bytes: element 0 of a map is this far
// into one.
inline int64_t sign_lead(const Mapping& m) { return m.sign_skip % 8; }

// Where the generator stands must be a multiple of 8.
inline void draw_sign_bytes(const Isa& isa, Mt19937* generator, int64_t n, uint8_t* bits) {
  for (int64_t left = 8 * n; left > 0;) {
    int64_t there = 0;
    const uint32_t* words = generator->words(&there);
    const int64_t some = min64(there, left);
    isa.temper_bits(words, some, bits);
    generator->skip(static_cast<uint64_t>(some));
    bits += some / 8;
    left -= some;
  }
}

inline Mt19937 sign_generator(const roast_plan& p, int64_t e) {
  Mt19937 generator(static_cast<uint32_t>(p.map.sign_seed), p.isa->refill);
  if (p.signs == nullptr) generator.skip(static_cast<uint64_t>((p.map.sign_skip + e) / 8 * 8));
  return generator;
}

// The drawn signs from element e on, in row-major order, a piece at a time: drawn, or out of the
// table of a view that is the matrix.
template <int64_t kBytes>
class SignStream {
 public:
  static constexpr int64_t kNumel = 8 * kBytes;

  SignStream(const roast_plan& p, int64_t e)
      : isa_(*p.isa),
        generator_(sign_generator(p, e)),
        table_{p.signs, p.signs_lead + e, 0},
        end_((p.map.sign_skip + e) % 8) {}

  // The next n signs, n <= kNumel, as one row.
  Signs next(int64_t n) {
    if (table_.bits != nullptr) {
      const Signs signs = table_;
      table_.first += n;
      return signs;
    }
    const int64_t first = end_ % 8, last_byte = end_ / 8;
    const int64_t kept = last_byte < drawn_ ? 1 : 0;
    if (kept == 1) bits_[0] = bits_[last_byte];
    end_ = first + n;
    drawn_ = (end_ + 7) / 8;
    if (drawn_ > kept) draw_sign_bytes(isa_, &generator_, drawn_ - kept, bits_ + kept);
    return Signs{bits_, first, 0};
  }

 private:
  const Isa& isa_;
  Mt19937 generator_;
  Signs table_;
  int64_t end_, drawn_ = 0;
  uint8_t bits_[kBytes + 1 + sizeof(uint32_t)];
};

// x[n] times the drawn signs of elements e to e + n - 1.
inline void flip_drawn(const roast_plan& p, int64_t e, int64_t n, float* x) {
  using Stream = SignStream<512>;
  Stream stream(p, e);
  for (int64_t done = 0; done < n;) {
    const int64_t some = min64(Stream::kNumel, n - done);
    const Signs signs = stream.next(some);
    p.isa->flip(signs.bits, signs.first, some, x + done);
    done += some;
  }
}

// Signs of a rectangle of the view (counted with the origin) from its place (r, c) on: out of the
// table, if they are there.
inline Signs signs_at(const roast_plan& p, const Rect& view, int64_t r, int64_t c) {
  if (p.signs == nullptr) return Signs{nullptr, 0, 0};
  const Mapping& m = p.map;
  const int64_t stride = m.transposed ? m.rows : m.cols;
  const int64_t row = view.r0 + r - m.origin_r, column = view.c0 + c - m.origin_c;
  return Signs{p.signs, p.signs_lead + row * stride + column, stride};
}

}  // namespace roast
