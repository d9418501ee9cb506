// The operators: take the arguments, check them, run roast_kernel.
#include "torch_kernels.h"

#include <utility>

#include "torch_call.h"
#include "torch_parts.h"

namespace roast_torch {

namespace {

Tensor floats(const char* op, const int64_t* sizes, int64_t rank) {
  return empty(op, sizes, rank, types().float32);
}

// The sizes of `like` without its last `dropped`, then `last`.
Tensor floats_like(const char* op, const Tensor& like, int64_t dropped, int64_t last) {
  int64_t sizes[kMaxRank + 1];
  const int64_t kept = like.rank - dropped;
  if (kept == kMaxRank) fail(op, "the result would have too many dimensions");
  for (int64_t d = 0; d < kept; ++d) sizes[d] = like.sizes[d];
  sizes[kept] = last;
  return floats(op, sizes, kept + 1);
}

bool same_sizes(const Tensor& tensor, const int64_t* sizes, int64_t rank) {
  if (tensor.rank < rank) return false;
  for (int64_t d = 0; d < rank; ++d) {
    if (tensor.sizes[d] != sizes[d]) return false;
  }
  return true;
}

// ---- Gradients of the array ----

// How many arrays of sums share the work. A function of sizes alone, so that the result does not
// depend on the number of threads; and few enough that adding them up costs little.
size_t parts_of_sums(int64_t numel, int64_t n_memory) {
  const int64_t parts = numel / (4 * n_memory);
  return static_cast<size_t>(parts < 1 ? 1 : parts > 8 ? 8 : parts);
}

// The sum over all parts of what scatter(part, parts, sums) adds to sums[n_memory].
template <class Scatter>
Tensor add_up(const char* op, int64_t n_memory, size_t parts, const Scatter& scatter) {
  Tensor total = floats(op, &n_memory, 1);
  const int64_t others[2] = {static_cast<int64_t>(parts) - 1, n_memory};
  const Tensor rest = floats(op, others, 2);
  float* const first = mutable_floats(op, total);
  float* const second = mutable_floats(op, rest);
  const size_t n = static_cast<size_t>(n_memory);
  run_parts(op, parts, [&](size_t part) {
    float* const sums = part == 0 ? first : second + (part - 1) * n;
    __builtin_memset(sums, 0, n * sizeof(float));
    scatter(part, parts, sums);
  });
  constexpr size_t kSlots = size_t{1} << 14;
  run_parts(op, parts > 1 ? (n + kSlots - 1) / kSlots : 0, [&](size_t chunk) {
    const size_t begin = chunk * kSlots, end = begin + kSlots < n ? begin + kSlots : n;
    for (size_t part = 1; part < parts; ++part) {
      const float* const sums = second + (part - 1) * n;
      for (size_t slot = begin; slot < end; ++slot) first[slot] += sums[slot];
    }
  });
  return total;
}

// ---- A layer ----

struct Layer {
  int64_t out, in, n;
};

Layer inspect_layer(const char* op, const Weight& weight, Tensor* x, Tensor* bias) {
  inspect(op, "x", x);
  Layer layer{weight.shape()[0], weight.numel() / weight.shape()[0], 0};
  if (x->rank < 1) fail(op, "x has no dimensions, the last one must be ", layer.in);
  const int64_t last = x->sizes[x->rank - 1];
  if (last != layer.in) {
    fail(op, "the last dimension of x is ", last, ", the weight needs ", layer.in);
  }
  layer.n = x->numel / layer.in;
  if (bias->handle == nullptr) return layer;
  inspect(op, "bias", bias);
  if (bias->rank != 1 || bias->numel != layer.out) {
    fail(op, "bias has ", bias->numel, " elements in ", bias->rank,
         " dimensions, the weight needs ", layer.out, " in one");
  }
  return layer;
}

void multiply(const char* op, const roast_plan* plan, const Layer& layer, const Tensor& x,
              const Tensor& memory, const Tensor& bias, float* y) {
  const int type = memory_type(memory);
  const size_t n = static_cast<size_t>(layer.n);
  const auto* const array = elements<void>(op, memory);
  const auto* const inputs = elements<float>(op, x);
  const auto* const biases = bias.handle == nullptr ? nullptr : elements<float>(op, bias);
  const Scratch scratch(roast_linear_scratch_bytes(plan, type, n));
  run_parts(op, roast_linear_pack_parts(plan, type, n), [&](size_t part) {
    roast_linear_pack_part(plan, type, inputs, n, scratch.data(), part);
  });
  run_parts(op, roast_linear_parts(plan, type, n), [&](size_t part) {
    roast_linear_part(plan, array, type, inputs, n, biases, scratch.data(), part, y);
  });
}

}  // namespace

// gather(Tensor memory, int[] mapping, float scale) -> Tensor
void gather(Value* stack, uint64_t, uint64_t) {
  constexpr const char* op = "gather";
  Tensor memory(stack[0]);
  List mapping(stack[1]);
  const Value scale = stack[2];
  const Weight weight(op, mapping, value_as<double>(scale), Table::kAlways);
  inspect_memory(op, weight, &memory);
  if (!served(op, "memory", memory, Floats::kAlsoHalf)) {
    stack[0] = memory.release();
    stack[1] = as_value(mapping.release());
    return forward(op, stack);
  }
  memory = plain(op, std::move(memory), memory.type);
  Tensor result = floats(op, weight.shape(), weight.n_dims());
  const auto* const array = elements<void>(op, memory);
  float* const out = mutable_floats(op, result);
  run_parts(op, roast_gather_parts(weight.plan()), [&](size_t part) {
    roast_gather_part(weight.plan(), array, memory_type(memory), nullptr, part, out);
  });
  stack[0] = result.release();
}

// gather_backward(Tensor grad, int[] mapping, float scale) -> Tensor
void gather_backward(Value* stack, uint64_t, uint64_t) {
  constexpr const char* op = "gather_backward";
  Tensor grad(stack[0]);
  List mapping(stack[1]);
  const Value scale = stack[2];
  const Weight weight(op, mapping, value_as<double>(scale), Table::kAlways);
  inspect(op, "grad", &grad);
  if (grad.rank != weight.n_dims() || !same_sizes(grad, weight.shape(), grad.rank)) {
    fail(op, "grad has not the shape of the weight");
  }
  if (!served(op, "grad", grad, Floats::kFloat32)) {
    stack[0] = grad.release();
    stack[1] = as_value(mapping.release());
    return forward(op, stack);
  }
  grad = plain(op, std::move(grad), grad.type);
  const auto* const values = elements<float>(op, grad);
  const size_t parts = parts_of_sums(weight.numel(), weight.n_memory());
  stack[0] = add_up(op, weight.n_memory(), parts, [&](size_t part, size_t all, float* sums) {
               roast_scatter_part(weight.plan(), values, part, all, sums);
             }).release();
}

// embedding(Tensor memory, Tensor ids, int[] mapping, float scale) -> Tensor
void embedding(Value* stack, uint64_t, uint64_t) {
  constexpr const char* op = "embedding";
  Tensor memory(stack[0]), ids(stack[1]);
  List mapping(stack[2]);
  const Value scale = stack[3];
  const Weight weight(op, mapping, value_as<double>(scale), Table::kIfDrawn);
  require_rows(op, weight);
  inspect_memory(op, weight, &memory);
  inspect_ids(op, weight, &ids);
  if (!served(op, "memory", memory, Floats::kAlsoHalf)) {
    stack[0] = memory.release();
    stack[1] = ids.release();
    stack[2] = as_value(mapping.release());
    return forward(op, stack);
  }
  memory = plain(op, std::move(memory), memory.type);
  const int64_t dim = weight.shape()[1];
  Tensor result = floats_like(op, ids, 0, dim);
  const auto* const array = elements<void>(op, memory);
  const auto* const rows = elements<int64_t>(op, ids);
  const size_t n = static_cast<size_t>(ids.numel);
  float* const out = mutable_floats(op, result);
  run_parts(op, roast_embedding_parts(dim, n), [&](size_t part) {
    roast_embedding_part(weight.plan(), array, memory_type(memory), dim, rows, n, part, out);
  });
  stack[0] = result.release();
}

// embedding_backward(Tensor grad, Tensor ids, int[] mapping, float scale) -> Tensor
void embedding_backward(Value* stack, uint64_t, uint64_t) {
  constexpr const char* op = "embedding_backward";
  Tensor grad(stack[0]), ids(stack[1]);
  List mapping(stack[2]);
  const Value scale = stack[3];
  const Weight weight(op, mapping, value_as<double>(scale), Table::kIfDrawn);
  require_rows(op, weight);
  inspect(op, "grad", &grad);
  inspect_ids(op, weight, &ids);
  const int64_t dim = weight.shape()[1];
  if (grad.rank != ids.rank + 1 || !same_sizes(grad, ids.sizes, ids.rank) ||
      grad.sizes[ids.rank] != dim) {
    fail(op, "grad has not the shape of the rows that ids name");
  }
  if (!served(op, "grad", grad, Floats::kFloat32)) {
    stack[0] = grad.release();
    stack[1] = ids.release();
    stack[2] = as_value(mapping.release());
    return forward(op, stack);
  }
  grad = plain(op, std::move(grad), grad.type);
  const auto* const values = elements<float>(op, grad);
  const auto* const rows = elements<int64_t>(op, ids);
  const size_t n = static_cast<size_t>(ids.numel), width = static_cast<size_t>(dim);
  const size_t parts = parts_of_sums(grad.numel, weight.n_memory());
  stack[0] = add_up(op, weight.n_memory(), parts, [&](size_t part, size_t all, float* sums) {
               const size_t begin = n * part / all, end = n * (part + 1) / all;
               roast_embedding_scatter(weight.plan(), dim, rows + begin, end - begin,
                                       values + begin * width, sums);
             }).release();
}

// linear(Tensor x, Tensor memory, Tensor? bias, int[] mapping, float scale) -> Tensor
void linear(Value* stack, uint64_t, uint64_t) {
  constexpr const char* op = "linear";
  Tensor x(stack[0]), memory(stack[1]), bias = take_optional(stack[2]);
  List mapping(stack[3]);
  const Value scale = stack[4];
  const Weight weight(op, mapping, value_as<double>(scale), Table::kAlways);
  inspect_memory(op, weight, &memory);
  const Layer layer = inspect_layer(op, weight, &x, &bias);
  const bool biased = bias.handle != nullptr;
  if (!served(op, "x", x, Floats::kFloat32) || !served(op, "memory", memory, Floats::kAlsoHalf) ||
      (biased && !served(op, "bias", bias, Floats::kFloat32))) {
    stack[0] = x.release();
    stack[1] = memory.release();
    stack[2] = biased ? as_value(new Value(bias.release())) : 0;
    stack[3] = as_value(mapping.release());
    return forward(op, stack);
  }
  Tensor y = floats_like(op, x, 1, layer.out);
  if (layer.n > 0) {
    x = plain(op, std::move(x), x.type);
    memory = plain(op, std::move(memory), memory.type);
    if (biased) bias = plain(op, std::move(bias), bias.type);
    multiply(op, weight.plan(), layer, x, memory, bias, mutable_floats(op, y));
  }
  stack[0] = y.release();
}

}  // namespace roast_torch
