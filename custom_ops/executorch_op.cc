// roast::gather, roast::linear and roast::embedding for ExecuTorch: checks tensors, runs
// roast_kernel. A kernel there keeps nothing between two runs, so each run makes its plan anew,
// without a table.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <stdlib.h>

#include "roast_kernel.h"

namespace {

using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

using Sizes = executorch::aten::SizesType;

constexpr size_t kLine = 64;
constexpr int kHeaderLength = 32;
constexpr ssize_t kMaxDims = 16;

// Bytes aligned to a cache line; null if there are none.
class Block {
 public:
  explicit Block(size_t bytes) : raw_(malloc(bytes + kLine)) {}
  ~Block() { free(raw_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* get() const {
    const uintptr_t place = reinterpret_cast<uintptr_t>(raw_);
    return raw_ == nullptr ? nullptr : reinterpret_cast<void*>((place + kLine) / kLine * kLine);
  }

 private:
  void* raw_;
};

// A checked record, and the array that it reads.
class Weight {
 public:
  Weight(const Tensor& memory, ArrayRef<int64_t> mapping, double scale)
      : mapping_(mapping), block_(roast_plan_bytes()), error_(check(memory, scale)) {}

  roast_plan* plan() const { return static_cast<roast_plan*>(block_.get()); }
  const void* data() const { return data_; }
  int type() const { return type_; }
  Error error() const { return error_; }
  int64_t n_dims() const { return static_cast<int64_t>(mapping_.size()) - kHeaderLength; }
  int64_t size(int64_t dim) const { return mapping_[static_cast<size_t>(kHeaderLength + dim)]; }

 private:
  Error check(const Tensor& memory, double scale) {
    if (plan() == nullptr) return Error::MemoryAllocationFailed;
    char why[256];
    if (roast_plan_init(plan(), mapping_.data(), mapping_.size(), static_cast<float>(scale), why,
                        sizeof why) != 0) {
      ET_LOG(Error, "roast: %s", why);
      return Error::InvalidArgument;
    }
    const bool half = memory.scalar_type() == ScalarType::Half;
    if ((!half && memory.scalar_type() != ScalarType::Float) || memory.dim() != 1 ||
        memory.size(0) != roast_plan_n_memory(plan())) {
      ET_LOG(Error, "roast: memory must be float32 or float16, in one dimension of n_memory");
      return Error::InvalidArgument;
    }
    type_ = half ? ROAST_FLOAT16 : ROAST_FLOAT32;
    data_ = memory.const_data_ptr();
    return Error::Ok;
  }

  ArrayRef<int64_t> mapping_;
  Block block_;
  const void* data_ = nullptr;
  int type_ = ROAST_FLOAT32;
  Error error_;  // last: the check sets the others
};

#define ROAST_CHECK(condition, error, why) \
  ET_KERNEL_CHECK_MSG(context, condition, error, out, "%s", why)

bool resize(Tensor& out, const Tensor& like, ssize_t kept, int64_t last) {
  Sizes sizes[kMaxDims + 1];
  if (kept > kMaxDims || last > INT32_MAX) return false;
  for (ssize_t d = 0; d < kept; ++d) sizes[d] = static_cast<Sizes>(like.size(d));
  sizes[kept] = static_cast<Sizes>(last);
  const ArrayRef<Sizes> all(sizes, static_cast<size_t>(kept + 1));
  return out.scalar_type() == ScalarType::Float &&
         executorch::runtime::resize_tensor(out, all) == Error::Ok;
}

Tensor& gather_out(KernelRuntimeContext& context, const Tensor& memory, ArrayRef<int64_t> mapping,
                   double scale, Tensor& out) {
  const Weight weight(memory, mapping, scale);
  ROAST_CHECK(weight.error() == Error::Ok, InvalidArgument, "gather: see above");
  Sizes sizes[kMaxDims];
  for (int64_t d = 0; d < weight.n_dims(); ++d) {
    ROAST_CHECK(weight.size(d) <= INT32_MAX, InvalidArgument, "gather: too large for this runtime");
    sizes[d] = static_cast<Sizes>(weight.size(d));
  }
  const ArrayRef<Sizes> all(sizes, static_cast<size_t>(weight.n_dims()));
  ROAST_CHECK(out.scalar_type() == ScalarType::Float &&
                  executorch::runtime::resize_tensor(out, all) == Error::Ok,
              InvalidArgument, "gather: out must hold the weight as float32");
  for (size_t part = 0; part < roast_gather_parts(weight.plan()); ++part) {
    roast_gather_part(weight.plan(), weight.data(), weight.type(), nullptr, part,
                      out.mutable_data_ptr<float>());
  }
  return out;
}

Tensor& embedding_out(KernelRuntimeContext& context, const Tensor& memory, const Tensor& ids,
                      ArrayRef<int64_t> mapping, double scale, Tensor& out) {
  const Weight weight(memory, mapping, scale);
  ROAST_CHECK(weight.error() == Error::Ok, InvalidArgument, "embedding: see above");
  ROAST_CHECK(weight.n_dims() == 2 && ids.scalar_type() == ScalarType::Long, InvalidArgument,
              "embedding: needs a weight of two dimensions and int64 ids");
  const int64_t dim = weight.size(1);
  const size_t n = static_cast<size_t>(ids.numel());
  const int64_t* places = ids.const_data_ptr<int64_t>();
  ROAST_CHECK(roast_embedding_bad_id(weight.plan(), dim, places, n) == n, InvalidArgument,
              "embedding: an id is outside the table");
  ROAST_CHECK(resize(out, ids, ids.dim(), dim), InvalidArgument, "embedding: out is too small");
  for (size_t part = 0; part < roast_embedding_parts(dim, n); ++part) {
    roast_embedding_part(weight.plan(), weight.data(), weight.type(), dim, places, n, part,
                         out.mutable_data_ptr<float>());
  }
  return out;
}

Tensor& linear_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& memory,
                   const executorch::aten::optional<Tensor>& bias, ArrayRef<int64_t> mapping,
                   double scale, Tensor& out) {
  const Weight weight(memory, mapping, scale);
  ROAST_CHECK(weight.error() == Error::Ok, InvalidArgument, "linear: see above");
  ROAST_CHECK(weight.n_dims() == 2 && x.scalar_type() == ScalarType::Float && x.dim() >= 1 &&
                  x.size(x.dim() - 1) == weight.size(1),
              InvalidArgument, "linear: x must be float32 with as many columns as the weight");
  const float* added = nullptr;
  if (bias.has_value()) {
    ROAST_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 &&
                    bias->size(0) == weight.size(0),
                InvalidArgument, "linear: bias must be float32 with one element for each output");
    added = bias->const_data_ptr<float>();
  }
  ROAST_CHECK(resize(out, x, x.dim() - 1, weight.size(0)), InvalidArgument,
              "linear: out is too small");
  const size_t n = static_cast<size_t>(x.numel() / weight.size(1));
  if (n == 0) return out;
  const roast_plan* plan = weight.plan();
  const Block scratch(roast_linear_scratch_bytes(plan, weight.type(), n));
  ROAST_CHECK(scratch.get() != nullptr, MemoryAllocationFailed, "linear: out of memory");
  const float* rows = x.const_data_ptr<float>();
  for (size_t part = 0; part < roast_linear_pack_parts(plan, weight.type(), n); ++part) {
    roast_linear_pack_part(plan, weight.type(), rows, n, scratch.get(), part);
  }
  for (size_t part = 0; part < roast_linear_parts(plan, weight.type(), n); ++part) {
    roast_linear_part(plan, weight.data(), weight.type(), rows, n, added, scratch.get(), part,
                      out.mutable_data_ptr<float>());
  }
  return out;
}

EXECUTORCH_LIBRARY(roast, "gather.out", gather_out);
EXECUTORCH_LIBRARY(roast, "embedding.out", embedding_out);
EXECUTORCH_LIBRARY(roast, "linear.out", linear_out);

}  // namespace
