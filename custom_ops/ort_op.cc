// The operators of docs/operators.md for ONNX Runtime: reads attributes, checks tensors, runs
// roast_kernel. Uses no C or C++ library, so that one binary serves every host of a platform.
#include "ort_kernel.h"
#include "ort_scratch.h"

namespace {

using namespace roast_ort;

// ---- Creation ----

// A few bytes of a file can ask for a large table. Beyond these sizes a kernel works without one,
// as those of torch do (torch_plans.cc).
constexpr size_t kMaxTableBytes = size_t{256} << 20;
constexpr size_t kMaxOneTable = kMaxTableBytes / 4;

void give_back(const Kernel& kernel) {
  __atomic_sub_fetch(&kernel.host->table_bytes, kernel.table_bytes, __ATOMIC_RELAXED);
}

// A table if there is room for it, among those of all kernels.
OrtStatus* make_table(Kernel* kernel) {
  const size_t bytes = roast_plan_table_bytes(kernel->plan);
  if (bytes == 0 || bytes > kMaxOneTable) return nullptr;
  kernel->table_bytes = bytes;
  if (__atomic_add_fetch(&kernel->host->table_bytes, bytes, __ATOMIC_RELAXED) > kMaxTableBytes) {
    give_back(*kernel);
    kernel->table_bytes = 0;
    return nullptr;
  }
  OrtStatus* status = kernel->host->api->AllocatorAlloc(kernel->allocator, bytes, &kernel->table);
  if (status == nullptr && kernel->table != nullptr) {
    roast_plan_attach_table(kernel->plan, kernel->table);
  }
  return status;
}

void destroy(Kernel* kernel) {
  const Api* api = kernel->host->api;
  OrtAllocator* allocator = kernel->allocator;
  if (kernel->table != nullptr) succeeded(api, api->AllocatorFree(allocator, kernel->table));
  give_back(*kernel);
  if (__atomic_sub_fetch(&kernel->host->kernels, 1, __ATOMIC_ACQ_REL) == 0) free_spare(*kernel);
  succeeded(api, api->AllocatorFree(allocator, kernel));
}

// A kernel and its plan in one block of the host's allocator.
OrtStatus* allocate(const Host* host, Kernel** kernel) {
  constexpr size_t kHead = (sizeof(Kernel) + 15) / 16 * 16;
  OrtAllocator* allocator = nullptr;
  void* block = nullptr;
  OrtStatus* status = host->api->GetAllocatorWithDefaultOptions(&allocator);
  if (status != nullptr) return status;
  status = host->api->AllocatorAlloc(allocator, kHead + roast_plan_bytes(), &block);
  if (status != nullptr) return status;
  if (block == nullptr) return host->api->CreateStatus(ort_abi::kFail, "roast: out of memory");
  *kernel = static_cast<Kernel*>(block);
  (*kernel)->host = host;
  (*kernel)->allocator = allocator;
  (*kernel)->table = nullptr;
  (*kernel)->table_bytes = 0;
  (*kernel)->node[0] = 0;
  __atomic_add_fetch(&host->kernels, 1, __ATOMIC_RELAXED);
  (*kernel)->plan = reinterpret_cast<roast_plan*>(static_cast<char*>(block) + kHead);
  return nullptr;
}

OrtStatus* fill(Kernel* kernel, const OrtKernelInfo* info) {
  const Api* api = kernel->host->api;
  size_t node_size = kNodeName;
  if (!succeeded(api, api->KernelInfo_GetNodeName(info, kernel->node, &node_size))) {
    kernel->node[0] = 0;
  }
  Message message(api, kNames[kernel->kind], kernel->node);
  int64_t fields[roast::kHeaderLength + roast::kMaxDims];
  float scale = 0;
  const Attributes attributes(api, info, message.text);
  if (!read_fields(attributes, is_drawn(kernel->kind), fields, &kernel->n_dims, &scale,
                   message.text)) {
    return message.status();
  }
  if ((is_embedding(kernel->kind) || is_linear(kernel->kind)) && kernel->n_dims != 2) {
    message.text << "attribute shape has " << kernel->n_dims << " ints, it must have 2";
    return message.status();
  }
  char reason[kMessage];
  const size_t n_fields = static_cast<size_t>(roast::kHeaderLength + kernel->n_dims);
  if (roast_plan_init(kernel->plan, fields, n_fields, scale, reason, kMessage) != 0) {
    message.text << reason;
    return message.status();
  }
  kernel->n_memory = roast_plan_n_memory(kernel->plan);
  for (int64_t d = 0; d < kernel->n_dims; ++d) kernel->shape[d] = fields[roast::kHeaderLength + d];
  // A table of starts would cost an embedding more than the few rows of a run gain by it; drawn
  // signs would cost it the whole stream.
  return kernel->kind == kEmbedding ? nullptr : make_table(kernel);
}

OrtStatus* ORT_ABI_CALL create_kernel(const CustomOp* op, const Api*, const OrtKernelInfo* info,
                                      void** out) {
  const Op* self = reinterpret_cast<const Op*>(op);
  Kernel* kernel = nullptr;
  OrtStatus* status = allocate(self->host, &kernel);
  if (status != nullptr) return status;
  kernel->kind = self->kind;
  status = fill(kernel, info);
  if (status != nullptr) {
    destroy(kernel);
    return status;
  }
  *out = kernel;
  return nullptr;
}

void ORT_ABI_CALL destroy_kernel(void* kernel) { destroy(static_cast<Kernel*>(kernel)); }

// ---- Computation ----

struct Job {
  const Kernel* kernel;
  const void* memory;
  int type;
  const uint8_t* signs;
  const int64_t* ids;
  size_t n_ids;
  float* out;
};

void run_part(void* data, size_t part) {
  const Job& job = *static_cast<const Job*>(data);
  const Kernel& kernel = *job.kernel;
  if (is_embedding(kernel.kind)) {
    roast_embedding_part(kernel.plan, job.memory, job.type, kernel.shape[1], job.ids, job.n_ids,
                         part, job.out);
  } else {
    roast_gather_part(kernel.plan, job.memory, job.type, job.signs, part, job.out);
  }
}

OrtStatus* read_signs(const Kernel& kernel, OrtKernelContext* context, Job* job) {
  Tensor signs;
  OrtStatus* status = read_input(kernel, context, 1, &signs);
  if (status != nullptr) return status;
  const uint64_t numel = static_cast<uint64_t>(roast_plan_numel(kernel.plan));
  const uint64_t bytes = (numel + 7) / 8;
  job->signs = static_cast<const uint8_t*>(signs.data);
  if (signs.rank == 1 && signs.numel == bytes) return nullptr;
  Message message(kernel.host->api, kNames[kernel.kind], kernel.node);
  message.text << "signs has " << static_cast<int64_t>(signs.numel) << " bytes in "
               << static_cast<int64_t>(signs.rank) << " dimensions, it must have "
               << static_cast<int64_t>(bytes) << " in one";
  return message.status();
}

OrtStatus* compute_gather(const Kernel& kernel, OrtKernelContext* context, Job* job) {
  if (kernel.kind == kGatherSigned) {
    OrtStatus* status = read_signs(kernel, context, job);
    if (status != nullptr) return status;
  }
  const size_t rank = static_cast<size_t>(kernel.n_dims);
  OrtStatus* status = open_output(kernel, context, kernel.shape, rank, &job->out);
  if (status != nullptr) return status;
  return run_parts(*kernel.host, context, run_part, roast_gather_parts(kernel.plan), job);
}

OrtStatus* check_ids(const Kernel& kernel, const Tensor& ids) {
  const int64_t* values = static_cast<const int64_t*>(ids.data);
  const int64_t dim = kernel.shape[1];
  const size_t bad = roast_embedding_bad_id(kernel.plan, dim, values, ids.numel);
  Message message(kernel.host->api, kNames[kernel.kind], kernel.node);
  if (bad < ids.numel) {
    message.text << "id " << values[bad] << " at place " << static_cast<int64_t>(bad)
                 << " is not in [0, " << kernel.shape[0] << ")";
    return message.status();
  }
  if (static_cast<uint64_t>(ids.numel) > SIZE_MAX / sizeof(float) / static_cast<uint64_t>(dim)) {
    message.text << "the bytes of " << static_cast<int64_t>(ids.numel) << " rows of " << dim
                 << " elements do not fit a size on this machine";
    return message.status();
  }
  return nullptr;
}

OrtStatus* compute_embedding(const Kernel& kernel, OrtKernelContext* context, Job* job) {
  Tensor ids;
  OrtStatus* status = read_input(kernel, context, 1, &ids);
  if (status != nullptr) return status;
  if (ids.rank > kMaxRank) {
    Message message(kernel.host->api, kNames[kernel.kind], kernel.node);
    message.text << "ids has " << static_cast<int64_t>(ids.rank) << " dimensions, at most "
                 << static_cast<int64_t>(kMaxRank) << " are supported";
    return message.status();
  }
  status = check_ids(kernel, ids);
  if (status == nullptr) {
    status = open_output_like(kernel, context, 1, 0, kernel.shape[1], &job->out);
  }
  if (status != nullptr) return status;
  job->ids = static_cast<const int64_t*>(ids.data);
  job->n_ids = ids.numel;
  const size_t parts = roast_embedding_parts(kernel.shape[1], ids.numel);
  return run_parts(*kernel.host, context, run_part, parts, job);
}

OrtStatus* ORT_ABI_CALL compute(void* data, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  if (is_linear(kernel.kind)) return compute_linear(kernel, context);
  Tensor memory;
  OrtStatus* status = read_memory(kernel, context, &memory);
  if (status != nullptr) return status;
  const int type = memory.type == ort_abi::kFloat16 ? ROAST_FLOAT16 : ROAST_FLOAT32;
  Job job{&kernel, memory.data, type, nullptr, nullptr, 0, nullptr};
  return is_embedding(kernel.kind) ? compute_embedding(kernel, context, &job)
                                   : compute_gather(kernel, context, &job);
}

// ---- What the host asks about an operator ----

const char* ORT_ABI_CALL get_name(const CustomOp* op) {
  return kNames[reinterpret_cast<const Op*>(op)->kind];
}

const char* ORT_ABI_CALL get_provider(const CustomOp*) { return nullptr; }

size_t ORT_ABI_CALL get_input_count(const CustomOp* op) {
  const Kind kind = reinterpret_cast<const Op*>(op)->kind;
  if (has_bias(kind)) return 3;
  return kind == kGather || kind == kGatherDrawn ? 1 : 2;
}

// memory is of any type here, and checked when it comes.
int ORT_ABI_CALL get_input_type(const CustomOp* op, size_t index) {
  const Kind kind = reinterpret_cast<const Op*>(op)->kind;
  if (index == memory_index(kind)) return ort_abi::kUndefined;
  if (is_linear(kind)) return ort_abi::kFloat;
  return is_embedding(kind) ? ort_abi::kInt64 : ort_abi::kUint8;
}

size_t ORT_ABI_CALL get_output_count(const CustomOp*) { return 1; }
int ORT_ABI_CALL get_output_type(const CustomOp*, size_t) { return ort_abi::kFloat; }
int ORT_ABI_CALL get_characteristic(const CustomOp*, size_t) { return ort_abi::kInputRequired; }
int ORT_ABI_CALL get_memory_type(const CustomOp*, size_t) { return ort_abi::kMemoryDefault; }
int ORT_ABI_CALL get_arity(const CustomOp*) { return 1; }

void describe(Op* op, const Host* host, Kind kind) {
  op->kind = kind;
  op->host = host;
  CustomOp& abi = op->abi;
  abi.version = ort_abi::kVersion;
  abi.GetName = get_name;
  abi.GetExecutionProviderType = get_provider;
  abi.GetInputType = get_input_type;
  abi.GetInputTypeCount = get_input_count;
  abi.GetOutputType = get_output_type;
  abi.GetOutputTypeCount = get_output_count;
  abi.KernelDestroy = destroy_kernel;
  abi.GetInputCharacteristic = get_characteristic;
  abi.GetOutputCharacteristic = get_characteristic;
  abi.GetInputMemoryType = get_memory_type;
  abi.GetVariadicInputMinArity = get_arity;
  abi.GetVariadicInputHomogeneity = get_arity;
  abi.GetVariadicOutputMinArity = get_arity;
  abi.GetVariadicOutputHomogeneity = get_arity;
  abi.CreateKernelV2 = create_kernel;
  abi.KernelComputeV2 = compute;
}

// ---- Registration ----

// Sessions keep pointers to operators and domain, so both stay until the process ends. A process
// may hold several copies of ONNX Runtime, whose domains must not be mixed.
constexpr int kMaxHosts = 8;
Host g_hosts[kMaxHosts];
bool g_hosts_locked;

class HostsLock {
 public:
  HostsLock() {
    while (__atomic_test_and_set(&g_hosts_locked, __ATOMIC_ACQUIRE)) {
    }
  }
  ~HostsLock() { __atomic_clear(&g_hosts_locked, __ATOMIC_RELEASE); }
};

OrtStatus* open_domain(Host* host) {
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = host->api->CreateCustomOpDomain("ai.roast", &domain);
  if (status != nullptr) return status;
  for (int kind = 0; kind < kKinds && status == nullptr; ++kind) {
    describe(&host->ops[kind], host, static_cast<Kind>(kind));
    status = host->api->CustomOpDomain_Add(domain, &host->ops[kind].abi);
  }
  if (status != nullptr) {
    host->api->ReleaseCustomOpDomain(domain);
    return status;
  }
  host->domain = domain;
  return nullptr;
}

// Of "1.17.0". GetApi would tell as well, but prints a line where the answer is no.
bool at_least_1_17(const char* version) {
  int numbers[2] = {0, 0};
  for (int n = 0; n < 2 && *version != 0; ++version) {
    if (*version == '.') {
      ++n;
    } else if (*version >= '0' && *version <= '9' && numbers[n] < 1000) {
      numbers[n] = 10 * numbers[n] + (*version - '0');
    }
  }
  return numbers[0] > 1 || (numbers[0] == 1 && numbers[1] >= 17);
}

// The entry of this ONNX Runtime, made on first use; null if there is no room for it.
Host* find_host(const ApiBase* base, const Api* api) {
  for (Host& host : g_hosts) {
    if (host.base == nullptr) {
      host.base = base;
      host.api = api;
      host.parallel = at_least_1_17(base->GetVersionString());
    }
    if (host.base == base) return &host;
  }
  return nullptr;
}

}  // namespace

extern "C" ROAST_EXPORT OrtStatus* ORT_ABI_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                  const ApiBase* base) {
  const Api* api = base->GetApi(ort_abi::kVersion);
  if (api == nullptr) {
    // CreateStatus is the first function of every version.
    return base->GetApi(1)->CreateStatus(
        ort_abi::kFail, "roast: this ONNX Runtime is too old, version 1.16 or later is needed");
  }
  HostsLock lock;
  Host* host = find_host(base, api);
  if (host == nullptr) {
    return api->CreateStatus(ort_abi::kFail, "roast: too many copies of ONNX Runtime in a process");
  }
  if (host->domain == nullptr) {
    OrtStatus* status = open_domain(host);
    if (status != nullptr) return status;
  }
  return api->AddCustomOpDomain(options, host->domain);
}
