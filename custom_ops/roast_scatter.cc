// See roast_kernel.h. The adjoints of gathers and embeddings: gradients of a weight added up in the
// slots that it was read from.
#include "roast_gather.h"
#include "roast_kernel.h"
#include "roast_plan.h"

using roast::Mapping;
using roast::min64;
using roast::negate_if;
using roast::Rect;
using roast::Signs;
using roast::Slots;
using roast::Span;
using roast::TilePart;

namespace {

using Stream = roast::SignStream<512>;

// ---- Hashed maps ----

void add_tile(const roast_plan& p, bool turned, const TilePart& t, const float* grad,
              int64_t stride, float* sums) {
  const float factor = negate_if(t.packed >> 31, p.scale);
  roast::each_run(p.map, t, [&](int64_t first, const TilePart& run) {
    const Slots slots{sums + first, p.map.tile_c, run.rows, run.cols, run.signs};
    const float* from = grad + (turned ? run.c * stride + run.r : run.r * stride + run.c);
    (turned ? p.isa->add_transposed : p.isa->add)(slots, factor, from, stride);
  });
}

void add_elements(const roast_plan& p, const Rect& view, const float* grad, int64_t step_r,
                  int64_t step_c, float* sums) {
  for (int64_t r = view.r0; r < view.r1; ++r) {
    const float* from = grad + (r - view.r0) * step_r;
    const Signs signs = roast::signs_at(p, view, r - view.r0, 0);
    for (int64_t c = view.c0; c < view.c1; ++c, from += step_c) {
      const uint32_t packed = roast::packed_start(p, r, c) ^ roast::negative_at(signs, c - view.c0);
      sums[packed & ~roast::kNegative] += *from * negate_if(packed >> 31, p.scale);
    }
  }
}

// A rectangle of the matrix; `grad` is its corner, with rows `stride` apart.
void scatter_rect(const roast_plan& p, const Rect& rect, const float* grad, int64_t stride,
                  float* sums) {
  const bool turned = p.map.transposed == 1;
  const Rect view = roast::view_of(p.map, rect);
  const int64_t step_r = turned ? 1 : stride, step_c = turned ? stride : 1;
  if (roast::has_elements(p.map)) return add_elements(p, view, grad, step_r, step_c, sums);
  roast::each_tile(p, view, turned,
                   [&](const TilePart& t) { add_tile(p, turned, t, grad, stride, sums); });
}

void scatter_hashed_span(const roast_plan& p, int64_t e, int64_t n, const float* grad,
                         float* sums) {
  roast::each_rect(p.map, e, n, [&](const Rect& rect, int64_t at) {
    scatter_rect(p, rect, grad + at, p.map.cols, sums);
  });
}

// ---- Maps whose elements come in their order ----

// Gradients times their drawn signs, a piece at a time, each with its place.
template <class Visit>
void each_signed_piece(const roast_plan& p, int64_t e, int64_t n, const float* grad,
                       const Visit& visit) {
  if (!roast::draws_signs(p.map)) return visit(grad, int64_t{0}, n);
  float with_signs[Stream::kNumel];
  Stream stream(p, e);
  for (int64_t done = 0; done < n;) {
    const int64_t some = min64(Stream::kNumel, n - done);
    for (int64_t k = 0; k < some; ++k) with_signs[k] = grad[done + k];
    const Signs signs = stream.next(some);
    p.isa->flip(signs.bits, signs.first, some, with_signs);
    visit(with_signs, done, some);
    done += some;
  }
}

void scatter_span(const roast_plan& p, int64_t e, int64_t n, const float* grad, float* sums) {
  if (!roast::in_order(p)) return scatter_hashed_span(p, e, n, grad, sums);
  if (!roast::draws_elements(p.map)) {
    return each_signed_piece(p, e, n, grad, [&](const float* piece, int64_t at, int64_t some) {
      scatter_hashed_span(p, e + at, some, piece, sums);
    });
  }
  roast::SlotStream slots(p, e);
  each_signed_piece(p, e, n, grad, [&](const float* piece, int64_t, int64_t some) {
    for (int64_t k = 0; k < some; ++k) sums[slots.next()] += piece[k] * p.scale;
  });
}

// ---- Looked-up rows ----

void scatter_runs(const roast_plan& p, int64_t dim, const int64_t* ids, int64_t n,
                  const float* grad, float* sums) {
  const int64_t length = p.map.tile_c, across = dim / length, most = roast::kRuns / across;
  uint32_t packed[roast::kRuns];
  for (int64_t k = 0; k < n; k += most) {
    const int64_t some = min64(most, n - k);
    roast::starts_of_rows(p, across, ids + k, some, packed);
    for (int64_t row = 0; row < some; ++row) {
      for (int64_t j = 0; j < across; ++j, grad += length) {
        const uint32_t start = packed[j * some + row];
        const Signs signs{p.signs, p.signs_lead + ids[k + row] * dim + j * length, 0};
        const Slots slots{sums + (start & ~roast::kNegative), 0, 1, length, signs};
        p.isa->add(slots, negate_if(start >> 31, p.scale), grad, 0);
      }
    }
  }
}

}  // namespace

extern "C" {

void roast_scatter_part(const roast_plan* plan, const float* grad, size_t part, size_t parts,
                        float* sums) {
  const roast_plan& p = *plan;
  // Runs of the gather's own parts, equal but for one.
  const uint64_t all = static_cast<uint64_t>(p.parts), each = all / parts, more = all % parts;
  const uint64_t begin = part * each + (part < more ? part : more);
  const uint64_t end = begin + each + (part < more ? 1 : 0);
  for (uint64_t k = begin; k < end; ++k) {
    const int64_t own = static_cast<int64_t>(k);
    if (roast::in_order(p)) {
      const Span span = roast::span_of_part(p, own);
      scatter_span(p, span.first, span.n, grad + span.first, sums);
    } else {
      const Rect rect = roast::rect_of_part(p, own);
      scatter_rect(p, rect, grad + rect.r0 * p.map.cols + rect.c0, p.map.cols, sums);
    }
  }
}

void roast_embedding_scatter(const roast_plan* plan, int64_t dim, const int64_t* ids, size_t n,
                             const float* grad, float* sums) {
  const int64_t rows = static_cast<int64_t>(n);
  if (roast::rows_are_runs(*plan, dim)) return scatter_runs(*plan, dim, ids, rows, grad, sums);
  for (int64_t k = 0; k < rows; ++k) {
    scatter_span(*plan, ids[k] * dim, dim, grad + k * dim, sums);
  }
}

}  // extern "C"
