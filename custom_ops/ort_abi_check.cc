// Compiled, never linked into the library: ort_abi.h against ONNX Runtime's own header.
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort_abi.h"

namespace {

// Same at the binary level: equal, or an enum for int, or a twin by name; through const, pointers
// and function types.
template <class Ours, class Real>
constexpr bool same_value() {
  if constexpr (std::is_enum_v<Real>) {
    return std::is_same_v<Ours, int> && sizeof(Real) == sizeof(int);
  } else {
    return std::is_same_v<Ours, Real>;
  }
}
template <class Ours, class Real>
struct Same : std::bool_constant<same_value<Ours, Real>()> {};
template <>
struct Same<ort_abi::Api, OrtApi> : std::true_type {};
template <>
struct Same<ort_abi::CustomOp, OrtCustomOp> : std::true_type {};
template <class Ours, class Real>
struct Same<const Ours, const Real> : Same<Ours, Real> {};
template <class Ours, class Real>
struct Same<Ours*, Real*> : Same<Ours, Real> {};

template <class... Types>
struct List {};
template <class Ours, class Real>
struct SameLists : std::false_type {};
template <class... Ours, class... Real>
struct SameLists<List<Ours...>, List<Real...>>
    : std::bool_constant<(Same<Ours, Real>::value && ...)> {};
template <class Ours, class Real, bool equally_long>
struct SameLengths : std::false_type {};
template <class Ours, class Real>
struct SameLengths<Ours, Real, true> : SameLists<Ours, Real> {};

template <class R1, class R2, class... A1, class... A2>
struct Same<R1(A1...), R2(A2...)>
    : SameLengths<List<R1, A1...>, List<R2, A2...>, sizeof...(A1) == sizeof...(A2)> {};
template <class R1, class R2, class... A1, class... A2>
struct Same<R1(A1...), R2(A2...) noexcept> : Same<R1(A1...), R2(A2...)> {};

#define CHECK_AS(OURS, REAL, NAME)                                                           \
  static_assert(offsetof(OURS, NAME) == offsetof(REAL, NAME), #NAME " is at another place"); \
  static_assert(Same<decltype(OURS::NAME), decltype(REAL::NAME)>::value,                     \
                #NAME " has another signature")
#define CHECK_API(NAME) CHECK_AS(ort_abi::Api, OrtApi, NAME)
#define CHECK_OP(NAME) CHECK_AS(ort_abi::CustomOp, OrtCustomOp, NAME)

CHECK_API(CreateStatus);
CHECK_API(CreateCustomOpDomain);
CHECK_API(CustomOpDomain_Add);
CHECK_API(AddCustomOpDomain);
CHECK_API(GetTensorMutableData);
CHECK_API(GetTensorElementType);
CHECK_API(GetDimensionsCount);
CHECK_API(GetDimensions);
CHECK_API(GetTensorShapeElementCount);
CHECK_API(GetTensorTypeAndShape);
CHECK_API(AllocatorAlloc);
CHECK_API(AllocatorFree);
CHECK_API(GetAllocatorWithDefaultOptions);
CHECK_API(KernelInfoGetAttribute_float);
CHECK_API(KernelInfoGetAttribute_int64);
CHECK_API(KernelContext_GetInput);
CHECK_API(KernelContext_GetOutput);
CHECK_API(ReleaseStatus);
CHECK_API(ReleaseTensorTypeAndShapeInfo);
CHECK_API(ReleaseCustomOpDomain);
CHECK_API(KernelInfoGetAttributeArray_int64);
CHECK_API(KernelInfo_GetNodeName);
CHECK_API(KernelContext_ParallelFor);

CHECK_AS(ort_abi::ApiBase, OrtApiBase, GetApi);
CHECK_AS(ort_abi::ApiBase, OrtApiBase, GetVersionString);

CHECK_OP(version);
CHECK_OP(CreateKernel);
CHECK_OP(GetName);
CHECK_OP(GetExecutionProviderType);
CHECK_OP(GetInputType);
CHECK_OP(GetInputTypeCount);
CHECK_OP(GetOutputType);
CHECK_OP(GetOutputTypeCount);
CHECK_OP(KernelCompute);
CHECK_OP(KernelDestroy);
CHECK_OP(GetInputCharacteristic);
CHECK_OP(GetOutputCharacteristic);
CHECK_OP(GetInputMemoryType);
CHECK_OP(GetVariadicInputMinArity);
CHECK_OP(GetVariadicInputHomogeneity);
CHECK_OP(GetVariadicOutputMinArity);
CHECK_OP(GetVariadicOutputHomogeneity);
CHECK_OP(CreateKernelV2);
CHECK_OP(KernelComputeV2);

static_assert(ort_abi::kFail == ORT_FAIL && ort_abi::kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(ort_abi::kUndefined == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
static_assert(ort_abi::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(ort_abi::kUint8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(ort_abi::kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(ort_abi::kFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(ort_abi::kInputRequired == INPUT_OUTPUT_REQUIRED);
static_assert(ort_abi::kMemoryDefault == OrtMemTypeDefault);

}  // namespace
