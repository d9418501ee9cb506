// The part of ONNX Runtime's C ABI that run_onnx.cc uses: its wheel has the library and no headers.
// Positions hold for every release, as in custom_ops/ort_abi.h; ort_session_abi_check.cc compares
// them with the real header. With that header at hand, include it instead of this file.
#pragma once

#include "../../custom_ops/ort_abi.h"

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;

namespace ort_abi {

constexpr int kLogWarning = 2;
constexpr int kArenaAllocator = 1;
constexpr int kInt32 = 6;
constexpr int kBool = 9;

// `to_N` ends the gap before slot N, counted from 0.
struct SessionApi {
  Slot to_2[2];
  const char*(ORT_ABI_CALL* GetErrorMessage)(const OrtStatus*);
  Call<int, const char*, OrtEnv**> CreateEnv;
  Slot to_7[3];
  Call<const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**> CreateSession;
  Slot to_9[1];
  Call<OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
       const char* const*, size_t, OrtValue**>
      Run;
  Call<OrtSessionOptions**> CreateSessionOptions;
  Slot to_24[13];
  Call<OrtSessionOptions*, int> SetIntraOpNumThreads;
  Slot to_30[5];
  Call<const OrtSession*, size_t*> SessionGetInputCount;
  Call<const OrtSession*, size_t*> SessionGetOutputCount;
  Slot to_36[4];
  Call<const OrtSession*, size_t, OrtAllocator*, char**> SessionGetInputName;
  Call<const OrtSession*, size_t, OrtAllocator*, char**> SessionGetOutputName;
  Slot to_49[11];
  Call<const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**>
      CreateTensorWithDataAsOrtValue;
  Slot to_51[1];
  Call<OrtValue*, void**> GetTensorMutableData;
  Slot to_60[8];
  Call<const Info*, int*> GetTensorElementType;
  Call<const Info*, size_t*> GetDimensionsCount;
  Call<const Info*, int64_t*, size_t> GetDimensions;
  Slot to_64[1];
  Call<const Info*, size_t*> GetTensorShapeElementCount;
  Call<const OrtValue*, Info**> GetTensorTypeAndShape;
  Slot to_69[3];
  Call<int, int, OrtMemoryInfo**> CreateCpuMemoryInfo;
  Slot to_76[6];
  Call<OrtAllocator*, void*> AllocatorFree;
  Slot to_78[1];
  Call<OrtAllocator**> GetAllocatorWithDefaultOptions;
  Slot to_92[13];
  Release<OrtEnv> ReleaseEnv;
  Release<OrtStatus> ReleaseStatus;
  Release<OrtMemoryInfo> ReleaseMemoryInfo;
  Release<OrtSession> ReleaseSession;
  Release<OrtValue> ReleaseValue;
  Slot to_99[2];
  Release<Info> ReleaseTensorTypeAndShapeInfo;
  Release<OrtSessionOptions> ReleaseSessionOptions;
  Slot to_228[127];
  Call<OrtSessionOptions*, const char*> RegisterCustomOpsLibrary_V2;
};

}  // namespace ort_abi
