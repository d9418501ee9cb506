// What the operators for ONNX Runtime share: a kernel, and how it reads tensors.
#pragma once

#include "ort_abi.h"
#include "ort_attributes.h"
#include "roast_kernel.h"
#include "roast_mapping.h"

namespace roast_ort {

using ort_abi::ApiBase;
using ort_abi::CustomOp;

// What is drawn comes from MT19937, and has attributes of its own for that.
enum Kind {
  kGather,
  kGatherSigned,
  kEmbedding,
  kLinear,
  kLinearBias,
  kGatherDrawn,
  kEmbeddingDrawn,
  kLinearDrawn,
  kLinearBiasDrawn,
  kKinds
};

constexpr const char* kNames[kKinds] = {
    "RoastGather",         "RoastGatherSigned", "RoastEmbedding",
    "RoastLinear",         "RoastLinearBias",   "RoastGatherDrawn",
    "RoastEmbeddingDrawn", "RoastLinearDrawn",  "RoastLinearBiasDrawn"};

inline bool is_drawn(Kind kind) { return kind >= kGatherDrawn; }
inline bool is_embedding(Kind kind) { return kind == kEmbedding || kind == kEmbeddingDrawn; }
inline bool has_bias(Kind kind) { return kind == kLinearBias || kind == kLinearBiasDrawn; }
inline bool is_linear(Kind kind) {
  return kind == kLinear || kind == kLinearDrawn || has_bias(kind);
}
inline size_t memory_index(Kind kind) { return is_linear(kind) ? 1 : 0; }

constexpr size_t kNodeName = 128;

struct Host;
struct ScratchBlock;

// An operator as one host knows it. The host passes a pointer to `abi` back.
struct Op {
  CustomOp abi;
  Kind kind;
  const Host* host;
};

// One ONNX Runtime in this process. It lives as long as the process, as sessions may.
struct Host {
  const ApiBase* base;
  const Api* api;
  bool parallel;
  OrtCustomOpDomain* domain;
  Op ops[kKinds];
  // Changed while sessions run, by atomic operations: kernels that live, and the block of memory
  // that the next run may take (ort_scratch.h).
  mutable size_t kernels;
  // Of the tables of its kernels.
  mutable size_t table_bytes;
  mutable ScratchBlock* spare;
};

struct Kernel {
  const Host* host;
  OrtAllocator* allocator;
  Kind kind;
  roast_plan* plan;
  void* table;
  size_t table_bytes;
  int64_t n_memory, n_dims;
  int64_t shape[roast::kMaxDims];
  char node[kNodeName];
};

// ---- Tensors ----

struct Tensor {
  int type;
  size_t rank, numel;
  void* data;
};

inline OrtStatus* read_info(const Api* api, const ort_abi::Info* info, Tensor* tensor) {
  OrtStatus* status = api->GetTensorElementType(info, &tensor->type);
  if (status == nullptr) status = api->GetDimensionsCount(info, &tensor->rank);
  if (status == nullptr) status = api->GetTensorShapeElementCount(info, &tensor->numel);
  return status;
}

inline OrtStatus* read_input(const Kernel& kernel, OrtKernelContext* context, size_t index,
                             Tensor* tensor) {
  const Api* api = kernel.host->api;
  const OrtValue* value = nullptr;
  OrtStatus* status = api->KernelContext_GetInput(context, index, &value);
  if (status != nullptr) return status;
  if (value == nullptr) {
    Message message(api, kNames[kernel.kind], kernel.node);
    message.text << "input " << static_cast<int64_t>(index) << " is missing";
    return message.status();
  }
  ort_abi::Info* info = nullptr;
  status = api->GetTensorTypeAndShape(value, &info);
  if (status != nullptr) return status;
  status = read_info(api, info, tensor);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != nullptr) return status;
  return api->GetTensorMutableData(const_cast<OrtValue*>(value), &tensor->data);
}

inline OrtStatus* read_memory(const Kernel& kernel, OrtKernelContext* context, Tensor* memory) {
  const size_t index = memory_index(kernel.kind);
  OrtStatus* status = read_input(kernel, context, index, memory);
  if (status != nullptr) return status;
  Message message(kernel.host->api, kNames[kernel.kind], kernel.node);
  if (memory->type != ort_abi::kFloat && memory->type != ort_abi::kFloat16) {
    message.text << "memory must be float32 or float16, not element type " << memory->type;
    return message.status();
  }
  if (memory->rank != 1 ||
      static_cast<uint64_t>(memory->numel) != static_cast<uint64_t>(kernel.n_memory)) {
    message.text << "memory has " << static_cast<int64_t>(memory->numel) << " elements in "
                 << static_cast<int64_t>(memory->rank) << " dimensions, n_memory "
                 << kernel.n_memory << " needs as many in one";
    return message.status();
  }
  return nullptr;
}

inline OrtStatus* open_output(const Kernel& kernel, OrtKernelContext* context, const int64_t* dims,
                              size_t rank, float** out) {
  const Api* api = kernel.host->api;
  OrtValue* value = nullptr;
  void* data = nullptr;
  OrtStatus* status = api->KernelContext_GetOutput(context, 0, dims, rank, &value);
  if (status == nullptr) status = api->GetTensorMutableData(value, &data);
  *out = static_cast<float*>(data);
  return status;
}

// The output has the shape of an input, save for the last `dropped` dimensions, and then `last`.
constexpr size_t kMaxRank = 16;

inline OrtStatus* open_output_like(const Kernel& kernel, OrtKernelContext* context, size_t index,
                                   size_t dropped, int64_t last, float** out) {
  const Api* api = kernel.host->api;
  const OrtValue* value = nullptr;
  ort_abi::Info* info = nullptr;
  int64_t dims[kMaxRank + 1];
  size_t rank = 0;
  OrtStatus* status = api->KernelContext_GetInput(context, index, &value);
  if (status == nullptr) status = api->GetTensorTypeAndShape(value, &info);
  if (status != nullptr) return status;
  status = api->GetDimensionsCount(info, &rank);
  if (status == nullptr) status = api->GetDimensions(info, dims, rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != nullptr) return status;
  dims[rank - dropped] = last;
  return open_output(kernel, context, dims, rank - dropped + 1, out);
}

// Runs part 0 to parts - 1 of `work`, on the session's threads where the host lends them.
inline OrtStatus* run_parts(const Host& host, OrtKernelContext* context,
                            void (*part)(void*, size_t), size_t parts, void* work) {
  if (host.parallel && parts > 1) {
    return host.api->KernelContext_ParallelFor(context, part, parts, 0, work);
  }
  for (size_t k = 0; k < parts; ++k) part(work, k);
  return nullptr;
}

// ort_linear.cc: RoastLinear and RoastLinearBias.
OrtStatus* compute_linear(const Kernel& kernel, OrtKernelContext* context);

}  // namespace roast_ort
