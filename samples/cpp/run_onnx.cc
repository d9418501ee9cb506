// Runs an ONNX file that `roast-export` wrote: ONNX Runtime's C API, the operator library, no
// Python. Without --ops the file's own functions run in place of the operators.
#include <functional>
#include <iostream>
#include <memory>

#include "command_line.h"
#include "npy.h"
#include "ort_session_abi.h"

extern "C" const ort_abi::ApiBase* ORT_ABI_CALL OrtGetApiBase();

namespace {

using namespace ort_abi;

constexpr const char* kUsage =
    "usage: run_onnx MODEL.onnx INPUT.npy... [--ops libroast_ort.so] [--threads N]";

const SessionApi& api() {
  static const Api* const found = OrtGetApiBase()->GetApi(kVersion);
  if (found == nullptr) throw std::runtime_error("onnxruntime 1.16 or later is needed");
  return *reinterpret_cast<const SessionApi*>(found);
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string reason = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  throw std::runtime_error(reason);
}

// What `create` makes, released in the end.
template <class T, class Create>
std::unique_ptr<T, Release<T>> made(Release<T> release, const Create& create) {
  T* object = nullptr;
  check(create(&object));
  return {object, release};
}

using Value = std::unique_ptr<OrtValue, Release<OrtValue>>;

std::vector<std::string> names(const OrtSession* session, bool inputs) {
  const SessionApi& ort = api();
  OrtAllocator* allocator = nullptr;
  size_t n = 0;
  check(ort.GetAllocatorWithDefaultOptions(&allocator));
  check((inputs ? ort.SessionGetInputCount : ort.SessionGetOutputCount)(session, &n));
  std::vector<std::string> all;
  for (size_t k = 0; k < n; ++k) {
    char* name = nullptr;
    check((inputs ? ort.SessionGetInputName : ort.SessionGetOutputName)(session, k, allocator,
                                                                        &name));
    all.emplace_back(name);
    check(ort.AllocatorFree(allocator, name));
  }
  return all;
}

// Reads from `array` in place.
Value to_value(Array& array, const OrtMemoryInfo* memory) {
  const int type = array.type == "<f4"   ? kFloat
                   : array.type == "<f2" ? kFloat16
                   : array.type == "<i8" ? kInt64
                   : array.type == "<i4" ? kInt32
                   : array.type == "|u1" ? kUint8
                   : array.type == "|b1" ? kBool
                                         : kUndefined;
  if (type == kUndefined) throw std::runtime_error("type " + array.type + " is not supported");
  return made<OrtValue>(api().ReleaseValue, [&](OrtValue** value) {
    return api().CreateTensorWithDataAsOrtValue(memory, array.bytes.data(), array.bytes.size(),
                                                array.shape.data(), array.shape.size(), type,
                                                value);
  });
}

void print(const std::string& name, OrtValue* value) {
  const SessionApi& ort = api();
  const auto info = made<Info>(ort.ReleaseTensorTypeAndShapeInfo, [&](Info** made_info) {
    return ort.GetTensorTypeAndShape(value, made_info);
  });
  int type = 0;
  size_t rank = 0, n = 0;
  void* data = nullptr;
  check(ort.GetTensorElementType(info.get(), &type));
  check(ort.GetDimensionsCount(info.get(), &rank));
  check(ort.GetTensorShapeElementCount(info.get(), &n));
  std::vector<int64_t> shape(rank);
  check(ort.GetDimensions(info.get(), shape.data(), rank));
  check(ort.GetTensorMutableData(value, &data));
  if (type != kFloat && type != kInt64)
    throw std::runtime_error(name + " is of a type not printed here");
  print_header(name.c_str(), type == kFloat ? "float32" : "int64", shape.data(), rank);
  if (type == kFloat) {
    print_values(static_cast<const float*>(data), n);
  } else {
    print_values(static_cast<const int64_t*>(data), n);
  }
}

std::vector<const char*> pointers(const std::vector<std::string>& strings) {
  std::vector<const char*> all;
  for (const std::string& each : strings) all.push_back(each.c_str());
  return all;
}

void run(const CommandLine& line) {
  const SessionApi& ort = api();
  const auto env = made<OrtEnv>(
      ort.ReleaseEnv, [&](OrtEnv** out) { return ort.CreateEnv(kLogWarning, "run_onnx", out); });
  const auto options = made<OrtSessionOptions>(ort.ReleaseSessionOptions, ort.CreateSessionOptions);
  if (line.threads > 0) check(ort.SetIntraOpNumThreads(options.get(), line.threads));
  if (!line.ops.empty()) check(ort.RegisterCustomOpsLibrary_V2(options.get(), line.ops.c_str()));
  const auto session = made<OrtSession>(ort.ReleaseSession, [&](OrtSession** out) {
    return ort.CreateSession(env.get(), line.model.c_str(), options.get(), out);
  });
  const auto memory = made<OrtMemoryInfo>(ort.ReleaseMemoryInfo, [&](OrtMemoryInfo** out) {
    return ort.CreateCpuMemoryInfo(kArenaAllocator, kMemoryDefault, out);
  });

  const std::vector<std::string> inputs = names(session.get(), true);
  const std::vector<std::string> outputs = names(session.get(), false);
  if (line.inputs.size() != inputs.size()) {
    std::string wanted;
    for (const std::string& name : inputs) wanted += " " + name;
    throw std::runtime_error("the model takes " + std::to_string(inputs.size()) +
                             " inputs:" + wanted);
  }
  std::vector<Array> arrays;
  for (const std::string& path : line.inputs) arrays.push_back(read_npy(path));
  std::vector<Value> values;
  std::vector<const OrtValue*> given;
  for (Array& array : arrays) {
    values.push_back(to_value(array, memory.get()));
    given.push_back(values.back().get());
  }

  std::vector<OrtValue*> results(outputs.size());
  check(ort.Run(session.get(), nullptr, pointers(inputs).data(), given.data(), given.size(),
                pointers(outputs).data(), outputs.size(), results.data()));
  for (OrtValue* result : results) values.emplace_back(result, ort.ReleaseValue);
  for (size_t k = 0; k < outputs.size(); ++k) print(outputs[k], results[k]);
}

}  // namespace

int main(int argc, char** argv) try {
  run(parse(argc, argv, kUsage));
  return 0;
} catch (const std::exception& error) {
  std::cerr << "run_onnx: " << error.what() << "\n";
  return 1;
}
