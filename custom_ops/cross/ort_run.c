// Runs a model once in ONNX Runtime, with the operator library or without it.
//
//   ort_run libonnxruntime.so MODEL LIBRARY|- INPUTS OUTPUTS [ENTRY=VALUE]...
//
// ENTRY=VALUE are session configuration entries. INPUTS and OUTPUTS: tensor_file.h.
#include <dlfcn.h>

#include "tensor_file.h"

#if defined(ROAST_ORT_HEADER)
#include <onnxruntime_c_api.h>
#else
#include "ort_host_abi.h"
#endif

enum { API_VERSION = 16 };

static const OrtApi* api;

static void must(const char* what, OrtStatus* status) {
  if (status != NULL) fail(what, api->GetErrorMessage(status));
}

static OrtValue* read_tensor(FILE* file, const OrtMemoryInfo* where, char** name) {
  int64_t* dims = NULL;
  void* data = NULL;  // the tensor uses it in place
  OrtValue* value = NULL;
  const TensorHead head = read_parts(file, &dims, name, &data);
  must(*name,
       api->CreateTensorWithDataAsOrtValue(where, data, (size_t)head.bytes, dims, (size_t)head.rank,
                                           (ONNXTensorElementDataType)head.type, &value));
  free(dims);
  return value;
}

static void write_tensor(FILE* file, const char* name, OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = NULL;
  ONNXTensorElementDataType type;
  size_t rank = 0, numel = 0;
  int64_t dims[MOST_DIMS];
  void* data = NULL;
  must(name, api->GetTensorTypeAndShape(value, &info));
  must(name, api->GetTensorElementType(info, &type));
  must(name, api->GetDimensionsCount(info, &rank));
  if (rank > MOST_DIMS) fail(name, "too many dimensions");
  must(name, api->GetDimensions(info, dims, rank));
  must(name, api->GetTensorShapeElementCount(info, &numel));
  must(name, api->GetTensorMutableData(value, &data));
  write_parts(file, name, (int64_t)type, dims, rank, data, numel);
}

static OrtSession* open_session(char** argv, int n_entries) {
  OrtEnv* env = NULL;
  OrtSessionOptions* options = NULL;
  OrtSession* session = NULL;
  must("environment", api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "ort_run", &env));
  must("options", api->CreateSessionOptions(&options));
  if (strcmp(argv[3], "-") != 0) {
    must(argv[3], api->RegisterCustomOpsLibrary_V2(options, argv[3]));
  }
  for (int k = 0; k < n_entries; ++k) {
    char* entry = argv[6 + k];
    char* value = strchr(entry, '=');
    if (value == NULL) fail(entry, "is not ENTRY=VALUE");
    *value = 0;
    must(entry, api->AddSessionConfigEntry(options, entry, value + 1));
  }
  must(argv[2], api->CreateSession(env, argv[2], options, &session));
  return session;
}

static void run(OrtSession* session, FILE* in, FILE* out) {
  char *in_names[MOST_TENSORS], *out_names[MOST_TENSORS];
  OrtValue *in_values[MOST_TENSORS], *out_values[MOST_TENSORS] = {NULL};
  OrtMemoryInfo* where = NULL;
  OrtAllocator* allocator = NULL;
  size_t n_out = 0;
  must("memory", api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
  must("allocator", api->GetAllocatorWithDefaultOptions(&allocator));
  const int64_t n_in = read_count(in);
  for (int64_t k = 0; k < n_in; ++k) in_values[k] = read_tensor(in, where, &in_names[k]);
  must("outputs", api->SessionGetOutputCount(session, &n_out));
  if (n_out > MOST_TENSORS) fail("outputs", "too many");
  for (size_t k = 0; k < n_out; ++k) {
    must("outputs", api->SessionGetOutputName(session, k, allocator, &out_names[k]));
  }
  must("run",
       api->Run(session, NULL, (const char* const*)in_names, (const OrtValue* const*)in_values,
                (size_t)n_in, (const char* const*)out_names, n_out, out_values));
  const int64_t count = (int64_t)n_out;
  fwrite(&count, 8, 1, out);
  for (size_t k = 0; k < n_out; ++k) write_tensor(out, out_names[k], out_values[k]);
}

int main(int argc, char** argv) {
  if (argc < 6) fail("usage", "ort_run RUNTIME MODEL LIBRARY|- INPUTS OUTPUTS [ENTRY=VALUE]...");
  void* runtime = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (runtime == NULL) fail("runtime", dlerror());
  const OrtApiBase* (*get)(void) = (const OrtApiBase* (*)(void))dlsym(runtime, "OrtGetApiBase");
  api = get != NULL ? get()->GetApi(API_VERSION) : NULL;
  if (api == NULL) fail(argv[1], "is not ONNX Runtime 1.16 or later");
  FILE* in = fopen(argv[4], "rb");
  FILE* out = fopen(argv[5], "wb");
  if (in == NULL || out == NULL) fail(in == NULL ? argv[4] : argv[5], "cannot be opened");
  run(open_session(argv, argc - 6), in, out);
  fclose(in);
  return fclose(out) == 0 ? 0 : 1;
}
