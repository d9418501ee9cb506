// RoastLinear and RoastLinearBias for ONNX Runtime: checks tensors, runs roast_linear_*.
#include "ort_kernel.h"
#include "ort_scratch.h"

namespace roast_ort {
namespace {

struct Job {
  const Kernel* kernel;
  const void* memory;
  int type;
  const float* x;
  const float* bias;
  size_t n;
  void* scratch;
  float* y;
};

void pack_part(void* data, size_t part) {
  const Job& job = *static_cast<const Job*>(data);
  roast_linear_pack_part(job.kernel->plan, job.type, job.x, job.n, job.scratch, part);
}

void run_part(void* data, size_t part) {
  const Job& job = *static_cast<const Job*>(data);
  roast_linear_part(job.kernel->plan, job.memory, job.type, job.x, job.n, job.bias, job.scratch,
                    part, job.y);
}

OrtStatus* read_x(const Kernel& kernel, OrtKernelContext* context, Job* job, Tensor* x) {
  const Api* api = kernel.host->api;
  OrtStatus* status = read_input(kernel, context, 0, x);
  if (status != nullptr) return status;
  Message message(api, kNames[kernel.kind], kernel.node);
  if (x->type != ort_abi::kFloat || x->rank < 1 || x->rank > kMaxRank) {
    message.text << "x must be float32 of 1 to " << static_cast<int64_t>(kMaxRank)
                 << " dimensions, not element type " << x->type << " in "
                 << static_cast<int64_t>(x->rank);
    return message.status();
  }
  const OrtValue* value = nullptr;
  ort_abi::Info* info = nullptr;
  int64_t dims[kMaxRank];
  status = api->KernelContext_GetInput(context, 0, &value);
  if (status == nullptr) status = api->GetTensorTypeAndShape(value, &info);
  if (status != nullptr) return status;
  status = api->GetDimensions(info, dims, x->rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status != nullptr) return status;
  if (dims[x->rank - 1] != kernel.shape[1]) {
    message.text << "the last dimension of x is " << dims[x->rank - 1] << ", the weight needs "
                 << kernel.shape[1];
    return message.status();
  }
  job->x = static_cast<const float*>(x->data);
  job->n = x->numel / static_cast<size_t>(kernel.shape[1]);
  if (job->n <= SIZE_MAX / sizeof(float) / static_cast<size_t>(kernel.shape[0])) return nullptr;
  message.text << "the bytes of " << static_cast<int64_t>(job->n) << " rows of " << kernel.shape[0]
               << " elements do not fit a size on this machine";
  return message.status();
}

OrtStatus* read_bias(const Kernel& kernel, OrtKernelContext* context, Job* job) {
  if (!has_bias(kernel.kind)) return nullptr;
  Tensor bias;
  OrtStatus* status = read_input(kernel, context, 2, &bias);
  if (status != nullptr) return status;
  job->bias = static_cast<const float*>(bias.data);
  if (bias.type == ort_abi::kFloat && bias.rank == 1 &&
      static_cast<uint64_t>(bias.numel) == static_cast<uint64_t>(kernel.shape[0])) {
    return nullptr;
  }
  Message message(kernel.host->api, kNames[kernel.kind], kernel.node);
  message.text << "bias has " << static_cast<int64_t>(bias.numel) << " elements in "
               << static_cast<int64_t>(bias.rank) << " dimensions, the weight needs "
               << kernel.shape[0] << " float32 in one";
  return message.status();
}

OrtStatus* run(const Kernel& kernel, OrtKernelContext* context, Job* job) {
  const Host& host = *kernel.host;
  const size_t bytes = roast_linear_scratch_bytes(kernel.plan, job->type, job->n);
  ScratchBlock* block = nullptr;
  OrtStatus* status = take_scratch(kernel, bytes, &block);
  if (status != nullptr) return status;
  job->scratch = scratch_of(block);
  status = run_parts(host, context, pack_part,
                     roast_linear_pack_parts(kernel.plan, job->type, job->n), job);
  if (status == nullptr) {
    status =
        run_parts(host, context, run_part, roast_linear_parts(kernel.plan, job->type, job->n), job);
  }
  give_back(kernel, block);
  return status;
}

}  // namespace

OrtStatus* compute_linear(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x, memory;
  Job job{&kernel, nullptr, 0, nullptr, nullptr, 0, nullptr, nullptr};
  OrtStatus* status = read_x(kernel, context, &job, &x);
  if (status == nullptr) status = read_memory(kernel, context, &memory);
  if (status == nullptr) status = read_bias(kernel, context, &job);
  if (status != nullptr) return status;
  job.memory = memory.data;
  job.type = memory.type == ort_abi::kFloat16 ? ROAST_FLOAT16 : ROAST_FLOAT32;
  status = open_output_like(kernel, context, 0, 1, kernel.shape[0], &job.y);
  if (status != nullptr || job.n == 0) return status;
  return run(kernel, context, &job);
}

}  // namespace roast_ort
