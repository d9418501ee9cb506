// Runs a .pte in ExecuTorch, with the operator library or without it.
//
//   et_run MODEL LIBRARY|- INPUTS OUTPUTS [ISA]
//
// INPUTS: tensor_file.h, once for every run, one after the other; taken in order. OUTPUTS: the
// same, without names. ISA: the number of an instruction set in roast_kernel.h, which the library
// must have.
#include <dlfcn.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <vector>

#include "tensor_file.h"

using executorch::aten::Device;
using executorch::aten::DeviceType;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

namespace {

struct Type {
  int64_t onnx;
  ScalarType here;
};

constexpr Type kTypes[] = {
    {1, ScalarType::Float}, {2, ScalarType::Byte},  {3, ScalarType::Char},
    {5, ScalarType::Short}, {6, ScalarType::Int},   {7, ScalarType::Long},
    {9, ScalarType::Bool},  {10, ScalarType::Half}, {11, ScalarType::Double}};

ScalarType type_of(int64_t onnx) {
  for (const Type& type : kTypes) {
    if (type.onnx == onnx) return type.here;
  }
  fail("inputs", "an element type is not known");
  return ScalarType::Undefined;
}

int64_t number_of(ScalarType here) {
  for (const Type& type : kTypes) {
    if (type.here == here) return type.onnx;
  }
  return 0;
}

void must(const char* what, Error error) {
  if (error != Error::Ok) fail(what, executorch::runtime::to_string(error));
}

void load_operators(const char* path, const char* isa) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) fail("operators", dlerror());
  if (isa == nullptr) return;
  const auto force = reinterpret_cast<int (*)(int)>(dlsym(library, "roast_force_isa"));
  if (force == nullptr || force(atoi(isa)) != 0) fail(isa, "is no instruction set of this machine");
}

TensorPtr read_tensor(FILE* file) {
  int64_t* dims = nullptr;
  char* name = nullptr;
  void* data = nullptr;  // the tensor uses it in place
  const TensorHead head = read_parts(file, &dims, &name, &data);
  std::vector<SizesType> sizes(dims, dims + head.rank);
  free(dims);
  free(name);
  return executorch::extension::make_tensor_ptr(
      std::move(sizes), data, type_of(head.type), Device(DeviceType::CPU),
      executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND, free);
}

void write_tensor(FILE* file, const Tensor& tensor) {
  const std::vector<int64_t> dims(tensor.sizes().begin(), tensor.sizes().end());
  write_parts(file, "", number_of(tensor.scalar_type()), dims.data(), dims.size(),
              tensor.const_data_ptr(), static_cast<size_t>(tensor.numel()));
}

void run(Module& module, FILE* in, FILE* out) {
  std::vector<TensorPtr> kept;
  std::vector<EValue> inputs;
  for (int64_t k = read_count(in); k > 0; --k) {
    kept.push_back(read_tensor(in));
    inputs.emplace_back(*kept.back());
  }
  const auto outputs = module.forward(inputs);
  must("run", outputs.error());
  const int64_t count = static_cast<int64_t>(outputs->size());
  fwrite(&count, 8, 1, out);
  for (const EValue& output : *outputs) write_tensor(out, output.toTensor());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 && argc != 6) fail("usage", "et_run MODEL LIBRARY|- INPUTS OUTPUTS [ISA]");
  if (strcmp(argv[2], "-") != 0) load_operators(argv[2], argc == 6 ? argv[5] : nullptr);
  Module module(argv[1]);
  must(argv[1], module.load_forward());
  FILE* in = fopen(argv[3], "rb");
  FILE* out = fopen(argv[4], "wb");
  if (in == nullptr || out == nullptr) {
    fail(in == nullptr ? argv[3] : argv[4], "cannot be opened");
  }
  do {
    run(module, in, out);
  } while (!at_end(in));
  fclose(in);
  return fclose(out) == 0 ? 0 : 1;
}
