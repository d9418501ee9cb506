// Runs a TorchScript file that `roast-export --to torchscript` wrote: libtorch, the operator
// library, no Python.
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <iostream>

#include "command_line.h"
#include "npy.h"

namespace {

constexpr const char* kUsage =
    "usage: run_torchscript MODEL.pt INPUT.npy... [--ops libroast_torch.so] [--threads N]";

void load_operators(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW);
  if (library == nullptr) throw std::runtime_error(dlerror());
  const auto status = reinterpret_cast<const char* (*)()>(dlsym(library, "roast_torch_status"));
  if (status == nullptr) throw std::runtime_error(path + " is not libroast_torch");
  if (status() != nullptr) throw std::runtime_error(path + ": " + status());
}

torch::jit::Module load_model(const std::string& path) try {
  return torch::jit::load(path);
} catch (const std::exception& error) {
  if (std::strstr(error.what(), "Unknown builtin op: roast::") == nullptr) throw;
  throw std::runtime_error(
      "operators roast:: are not registered: pass --ops libroast_torch.so (in the installed "
      "package "
      "under roast_export/lib; roast_export.torch_library_path() names it)");
}

at::Tensor to_tensor(const Array& array) {
  const auto type = array.type == "<f4"   ? at::kFloat
                    : array.type == "<f8" ? at::kDouble
                    : array.type == "<i8" ? at::kLong
                    : array.type == "<i4" ? at::kInt
                    : array.type == "|b1" ? at::kBool
                                          : at::ScalarType::Undefined;
  if (type == at::ScalarType::Undefined)
    throw std::runtime_error("type " + array.type + " is not supported");
  const at::Tensor tensor = at::empty(array.shape, type);
  std::memcpy(tensor.mutable_data_ptr(), array.bytes.data(), array.bytes.size());
  return tensor;
}

void print(const std::string& name, const at::Tensor& value) {
  const auto print_as = [&](const at::Tensor& tensor, const char* type, const auto* values) {
    print_header(name.c_str(), type, tensor.sizes().data(), tensor.sizes().size());
    print_values(values, static_cast<size_t>(tensor.numel()));
  };
  if (value.is_floating_point()) {
    const at::Tensor plain = value.to(at::kFloat).contiguous();
    print_as(plain, "float32", plain.const_data_ptr<float>());
  } else {
    const at::Tensor plain = value.to(at::kLong).contiguous();
    print_as(plain, "int64", plain.const_data_ptr<int64_t>());
  }
}

// One tensor, several, or tensors by name.
void print(const c10::IValue& result) {
  if (result.isTensor()) return print("output", result.toTensor());
  if (result.isGenericDict()) {
    for (const auto& item : result.toGenericDict()) {
      print(item.key().toStringRef(), item.value().toTensor());
    }
    return;
  }
  size_t k = 0;
  const auto all =
      result.isTuple() ? result.toTupleRef().elements().vec() : result.toListRef().vec();
  for (const c10::IValue& item : all) print("output" + std::to_string(k++), item.toTensor());
}

void run(const CommandLine& line) {
  if (line.threads > 0) at::set_num_threads(line.threads);
  if (!line.ops.empty()) load_operators(line.ops);
  torch::jit::Module model = load_model(line.model);
  model.eval();
  std::vector<c10::IValue> inputs;
  for (const std::string& path : line.inputs) inputs.emplace_back(to_tensor(read_npy(path)));
  const c10::NoGradGuard no_gradients;
  print(model.forward(inputs));
}

}  // namespace

int main(int argc, char** argv) try {
  run(parse(argc, argv, kUsage));
  return 0;
} catch (const c10::Error& error) {
  std::cerr << "run_torchscript: " << error.what_without_backtrace() << "\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << "run_torchscript: " << error.what() << "\n";
  return 1;
}
