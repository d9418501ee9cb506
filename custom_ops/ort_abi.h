// The part of ONNX Runtime's C ABI that ort_op.cc uses. Its tables only ever grow at the end, so a
// position holds for every release from the one that added it on. ort_abi_check.cc compares all of
// this with the real header when ONNXRUNTIME_INCLUDE_DIR is given.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ORT_ABI_CALL __stdcall
#else
#define ORT_ABI_CALL
#endif

struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace ort_abi {

// ONNX Runtime 1.16, the oldest host that is served.
constexpr uint32_t kVersion = 16;

// C enums cross this border as int.
constexpr int kFail = 1;
constexpr int kInvalidArgument = 2;
constexpr int kUndefined = 0;
constexpr int kFloat = 1;
constexpr int kUint8 = 2;
constexpr int kInt64 = 7;
constexpr int kFloat16 = 10;
constexpr int kInputRequired = 0;
constexpr int kMemoryDefault = 0;

using Info = OrtTensorTypeAndShapeInfo;
using Slot = void (*)();
template <class... Args>
using Call = OrtStatus*(ORT_ABI_CALL*)(Args...);
template <class T>
using Release = void(ORT_ABI_CALL*)(T*);

struct CustomOp;

// `to_N` ends the gap before slot N, counted from 0.
struct Api {
  Call<int, const char*> CreateStatus;
  Slot to_26[25];
  Call<const char*, OrtCustomOpDomain**> CreateCustomOpDomain;
  Call<OrtCustomOpDomain*, const CustomOp*> CustomOpDomain_Add;
  Call<OrtSessionOptions*, OrtCustomOpDomain*> AddCustomOpDomain;
  Slot to_51[22];
  Call<OrtValue*, void**> GetTensorMutableData;
  Slot to_60[8];
  Call<const Info*, int*> GetTensorElementType;
  Call<const Info*, size_t*> GetDimensionsCount;
  Call<const Info*, int64_t*, size_t> GetDimensions;
  Slot to_64[1];
  Call<const Info*, size_t*> GetTensorShapeElementCount;
  Call<const OrtValue*, Info**> GetTensorTypeAndShape;
  Slot to_75[9];
  Call<OrtAllocator*, size_t, void**> AllocatorAlloc;
  Call<OrtAllocator*, void*> AllocatorFree;
  Slot to_78[1];
  Call<OrtAllocator**> GetAllocatorWithDefaultOptions;
  Slot to_85[6];
  Call<const OrtKernelInfo*, const char*, float*> KernelInfoGetAttribute_float;
  Call<const OrtKernelInfo*, const char*, int64_t*> KernelInfoGetAttribute_int64;
  Slot to_90[3];
  Call<const OrtKernelContext*, size_t, const OrtValue**> KernelContext_GetInput;
  Call<OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**> KernelContext_GetOutput;
  Slot to_93[1];
  Release<OrtStatus> ReleaseStatus;
  Slot to_99[5];
  Release<Info> ReleaseTensorTypeAndShapeInfo;
  Slot to_101[1];
  Release<OrtCustomOpDomain> ReleaseCustomOpDomain;
  Slot to_163[61];
  Call<const OrtKernelInfo*, const char*, int64_t*, size_t*> KernelInfoGetAttributeArray_int64;
  Slot to_244[80];
  Call<const OrtKernelInfo*, char*, size_t*> KernelInfo_GetNodeName;
  Slot to_274[29];
  // From version 17 on.
  Call<const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>
      KernelContext_ParallelFor;
};

struct ApiBase {
  const Api*(ORT_ABI_CALL* GetApi)(uint32_t version);
  const char*(ORT_ABI_CALL* GetVersionString)();
};

struct CustomOp {
  template <class R, class... Args>
  using Get = R(ORT_ABI_CALL*)(const CustomOp*, Args...);

  uint32_t version;
  Get<void*, const Api*, const OrtKernelInfo*> CreateKernel;
  Get<const char*> GetName;
  Get<const char*> GetExecutionProviderType;
  Get<int, size_t> GetInputType;
  Get<size_t> GetInputTypeCount;
  Get<int, size_t> GetOutputType;
  Get<size_t> GetOutputTypeCount;
  void(ORT_ABI_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(ORT_ABI_CALL* KernelDestroy)(void*);
  Get<int, size_t> GetInputCharacteristic;
  Get<int, size_t> GetOutputCharacteristic;
  Get<int, size_t> GetInputMemoryType;
  Get<int> GetVariadicInputMinArity;
  Get<int> GetVariadicInputHomogeneity;
  Get<int> GetVariadicOutputMinArity;
  Get<int> GetVariadicOutputHomogeneity;
  Get<OrtStatus*, const Api*, const OrtKernelInfo*, void**> CreateKernelV2;
  Call<void*, OrtKernelContext*> KernelComputeV2;
};

}  // namespace ort_abi
