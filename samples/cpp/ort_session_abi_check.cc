// Compiled, never linked: ort_session_abi.h against ONNX Runtime's own header.
#include "../../custom_ops/ort_abi_check.cc"
#include "ort_session_abi.h"

namespace {

#define CHECK_SESSION(NAME) CHECK_AS(ort_abi::SessionApi, OrtApi, NAME)

CHECK_SESSION(GetErrorMessage);
CHECK_SESSION(CreateEnv);
CHECK_SESSION(CreateSession);
CHECK_SESSION(Run);
CHECK_SESSION(CreateSessionOptions);
CHECK_SESSION(SetIntraOpNumThreads);
CHECK_SESSION(SessionGetInputCount);
CHECK_SESSION(SessionGetOutputCount);
CHECK_SESSION(SessionGetInputName);
CHECK_SESSION(SessionGetOutputName);
CHECK_SESSION(CreateTensorWithDataAsOrtValue);
CHECK_SESSION(GetTensorMutableData);
CHECK_SESSION(GetTensorElementType);
CHECK_SESSION(GetDimensionsCount);
CHECK_SESSION(GetDimensions);
CHECK_SESSION(GetTensorShapeElementCount);
CHECK_SESSION(GetTensorTypeAndShape);
CHECK_SESSION(CreateCpuMemoryInfo);
CHECK_SESSION(AllocatorFree);
CHECK_SESSION(GetAllocatorWithDefaultOptions);
CHECK_SESSION(ReleaseEnv);
CHECK_SESSION(ReleaseStatus);
CHECK_SESSION(ReleaseMemoryInfo);
CHECK_SESSION(ReleaseSession);
CHECK_SESSION(ReleaseValue);
CHECK_SESSION(ReleaseTensorTypeAndShapeInfo);
CHECK_SESSION(ReleaseSessionOptions);
CHECK_SESSION(RegisterCustomOpsLibrary_V2);

static_assert(ort_abi::kLogWarning == ORT_LOGGING_LEVEL_WARNING);
static_assert(ort_abi::kArenaAllocator == OrtArenaAllocator);
static_assert(ort_abi::kInt32 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(ort_abi::kBool == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);

}  // namespace
