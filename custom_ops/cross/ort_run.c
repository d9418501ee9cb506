// Runs a model once in ONNX Runtime, with the operator library or without it.
//
//   ort_run libonnxruntime.so MODEL LIBRARY|- INPUTS OUTPUTS [ENTRY=VALUE]...
//
// ENTRY=VALUE are session configuration entries. INPUTS and OUTPUTS are little-endian words of 64
// bits: the number of tensors; per tensor bytes of its name, element type, rank, bytes of its data,
// the dimensions, the name, the data; name and data padded to whole words.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(ROAST_ORT_HEADER)
#include <onnxruntime_c_api.h>
#else
#include "ort_host_abi.h"
#endif

enum { API_VERSION = 16, MOST_TENSORS = 64, MOST_DIMS = 32 };

typedef struct {
  int64_t name_bytes, type, rank, bytes;
} Head;

static const OrtApi* api;

static void fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void must(const char* what, OrtStatus* status) {
  if (status != NULL) fail(what, api->GetErrorMessage(status));
}

static size_t padded(int64_t bytes) { return ((size_t)bytes + 7) / 8 * 8; }

static void* read_bytes(FILE* file, int64_t bytes) {
  if (bytes < 0 || bytes > INT32_MAX) fail("inputs", "a size is out of range");
  char* found = calloc(padded(bytes) + 8, 1);
  if (found == NULL || fread(found, 1, padded(bytes), file) != padded(bytes)) {
    fail("inputs", "the file ends early");
  }
  return found;
}

static OrtValue* read_tensor(FILE* file, const OrtMemoryInfo* where, char** name) {
  Head head;
  if (fread(&head, sizeof head, 1, file) != 1) fail("inputs", "the file ends early");
  if (head.rank < 0 || head.rank > MOST_DIMS) fail("inputs", "a rank is out of range");
  int64_t* dims = read_bytes(file, head.rank * 8);
  *name = read_bytes(file, head.name_bytes);
  void* data = read_bytes(file, head.bytes);  // the tensor uses it in place
  OrtValue* value = NULL;
  must(*name,
       api->CreateTensorWithDataAsOrtValue(where, data, (size_t)head.bytes, dims, (size_t)head.rank,
                                           (ONNXTensorElementDataType)head.type, &value));
  free(dims);
  return value;
}

// Bytes of an element, by its number in onnx.TensorProto.
static size_t width(int64_t type) {
  switch (type) {
    case 2:
    case 3:
    case 9:
      return 1;
    case 4:
    case 5:
    case 10:
    case 16:
      return 2;
    case 1:
    case 6:
    case 12:
      return 4;
    case 7:
    case 11:
    case 13:
      return 8;
    default:
      return 0;
  }
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
  if (width((int64_t)type) == 0) fail(name, "has elements that this program does not write");
  const int64_t bytes = (int64_t)(numel * width((int64_t)type));
  const Head head = {(int64_t)strlen(name), (int64_t)type, (int64_t)rank, bytes};
  const char zeros[8] = {0};
  fwrite(&head, sizeof head, 1, file);
  fwrite(dims, 8, rank, file);
  fwrite(name, 1, (size_t)head.name_bytes, file);
  fwrite(zeros, 1, padded(head.name_bytes) - (size_t)head.name_bytes, file);
  fwrite(data, 1, (size_t)bytes, file);
  fwrite(zeros, 1, padded(bytes) - (size_t)bytes, file);
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
  int64_t n_in = 0;
  size_t n_out = 0;
  must("memory", api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
  must("allocator", api->GetAllocatorWithDefaultOptions(&allocator));
  if (fread(&n_in, 8, 1, in) != 1 || n_in < 0 || n_in > MOST_TENSORS) {
    fail("inputs", "the number of tensors is out of range");
  }
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
