// The kernel core: virtual weights out of an array, for any host (docs/mapping.md).
// Plain C ABI, freestanding: no allocation, no threads, no library calls of its own.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ROAST_EXPORT __declspec(dllexport)
#else
#define ROAST_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ROAST_KERNEL_ABI 1

// A checked mapping with its scale. After init and attach it is read only, and any number of
// threads may use it.
typedef struct roast_plan roast_plan;

enum { ROAST_FLOAT32 = 0, ROAST_FLOAT16 = 1 };

ROAST_EXPORT uint32_t roast_kernel_abi(void);

// Bytes of a plan; the caller owns the storage, aligned to 8.
ROAST_EXPORT size_t roast_plan_bytes(void);

// Checks the flat list (mapping.md section 5) and the scale. 0, or not 0 and a 0-terminated reason
// in message[capacity] (which may be null with capacity 0).
ROAST_EXPORT int roast_plan_init(roast_plan* plan, const int64_t* fields, size_t n, float scale,
                                 char* message, size_t capacity);

// Bytes of the optional table that makes everything faster: tile starts, tiles by their starts,
// drawn signs as bits (1/32 of the dense weight), saved generator states. Never more than an eighth
// of the dense weight; 0 where a table does not pay. Without it, drawn signs are drawn anew by
// every call, from the first one on.
ROAST_EXPORT size_t roast_plan_table_bytes(const roast_plan* plan);

// Fills table[roast_plan_table_bytes], aligned to 4, and uses it from then on. It must outlive the
// plan. Changes roast_gather_parts.
ROAST_EXPORT void roast_plan_attach_table(roast_plan* plan, void* table);

ROAST_EXPORT int64_t roast_plan_numel(const roast_plan* plan);
ROAST_EXPORT int64_t roast_plan_n_memory(const roast_plan* plan);

// A gather is cut into parts that write disjoint elements, in any order, on any threads.
ROAST_EXPORT size_t roast_gather_parts(const roast_plan* plan);

// Writes one part of out[numel], the weight in row-major order.
// memory: n_memory elements of `type`, one of ROAST_FLOAT32 and ROAST_FLOAT16.
// signs: null, or uint8[ceil(numel / 8)]; bit e mod 8 of byte e div 8 is 0 where W[e] is negated.
ROAST_EXPORT void roast_gather_part(const roast_plan* plan, const void* memory, int type,
                                    const uint8_t* signs, size_t part, float* out);

// An embedding: rows of the weight seen as [numel / dim, dim].
// The place of the first id outside the table, or n.
ROAST_EXPORT size_t roast_embedding_bad_id(const roast_plan* plan, int64_t dim, const int64_t* ids,
                                           size_t n);
ROAST_EXPORT size_t roast_embedding_parts(int64_t dim, size_t n);
// Writes one part of out[n, dim]. All ids must be good.
ROAST_EXPORT void roast_embedding_part(const roast_plan* plan, const void* memory, int type,
                                       int64_t dim, const int64_t* ids, size_t n, size_t part,
                                       float* out);

// The adjoint of the gather, for training: sums[n_memory] += scale * sign * grad[e] at the slot of
// every element e of part `part` of `parts`, where grad is float[numel] in row-major order. Any
// parts >= 1 may be asked for; all of them together cover every element once. Each part adds into
// sums of its own on its own thread, and the caller adds those up in order.
ROAST_EXPORT void roast_scatter_part(const roast_plan* plan, const float* grad, size_t part,
                                     size_t parts, float* sums);
// The same for looked-up rows: grad[n, dim] of the rows ids[n], in the order of ids. All ids must
// be good.
ROAST_EXPORT void roast_embedding_scatter(const roast_plan* plan, int64_t dim, const int64_t* ids,
                                          size_t n, const float* grad, float* sums);

// A linear layer: y[n, out] = x[n, in] W^T + bias, where W is the weight seen as [out, in] and
// out is its first dimension. W is never made. All calls of one layer get the same plan, type and
// n; scratch[roast_linear_scratch_bytes], aligned to 64, is used by one layer at a time. y does not
// depend on who runs the parts.
ROAST_EXPORT size_t roast_linear_scratch_bytes(const roast_plan* plan, int type, size_t n);
ROAST_EXPORT size_t roast_linear_pack_parts(const roast_plan* plan, int type, size_t n);
ROAST_EXPORT size_t roast_linear_parts(const roast_plan* plan, int type, size_t n);
// All of these before the first roast_linear_part.
ROAST_EXPORT void roast_linear_pack_part(const roast_plan* plan, int type, const float* x, size_t n,
                                         void* scratch, size_t part);
// bias: float[out] or null.
ROAST_EXPORT void roast_linear_part(const roast_plan* plan, const void* memory, int type,
                                    const float* x, size_t n, const float* bias, void* scratch,
                                    size_t part, float* y);

// Instruction sets: a plan keeps the one that was chosen when it was made.
enum {
  ROAST_ISA_BEST = -1,
  ROAST_ISA_PORTABLE = 0,
  ROAST_ISA_NEON = 1,
  ROAST_ISA_AVX2 = 2,
  ROAST_ISA_AVX512 = 3,
  ROAST_ISA_COUNT = 4
};
// Bit k is 1 where instruction set k works here.
ROAST_EXPORT uint32_t roast_available_isas(void);
// For tests: 0, and plans made from now on use `isa`; or 1 if it does not work here.
ROAST_EXPORT int roast_force_isa(int isa);

#ifdef __cplusplus
}
#endif
