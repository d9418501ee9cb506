// The operators of namespace roast, registered with torch when the library is loaded.
#include "roast_kernel.h"
#include "torch_kernels.h"
#include "torch_value.h"

namespace roast_torch {

namespace {

constexpr const char* kName = "libroast_torch";

struct Operator {
  const char* name;
  const char* schema;
  torch_abi::Kernel kernel;
};

constexpr Operator kOperators[] = {
    {"gather", "(Tensor memory, int[] mapping, float scale) -> Tensor", gather},
    {"gather_backward", "(Tensor grad, int[] mapping, float scale) -> Tensor", gather_backward},
    {"embedding", "(Tensor memory, Tensor ids, int[] mapping, float scale) -> Tensor", embedding},
    {"embedding_backward", "(Tensor grad, Tensor ids, int[] mapping, float scale) -> Tensor",
     embedding_backward},
    {"linear", "(Tensor x, Tensor memory, Tensor? bias, int[] mapping, float scale) -> Tensor",
     linear},
};

void version(Value* stack, uint64_t, uint64_t) {
  static constexpr char kText[] = ROAST_VERSION;
  StringOpaque* text = nullptr;
  check("version", torch_abi::torch_new_string_handle(kText, sizeof kText - 1, &text));
  stack[0] = as_value(text);
}

bool define(torch_abi::LibraryHandle library, const char* name, const char* schema) {
  char text[kMessage];
  roast::Text(text, kMessage) << name << schema;
  return torch_abi::aoti_torch_library_def(library, text) == torch_abi::kSuccess;
}

bool implement(torch_abi::LibraryHandle library, const char* name, torch_abi::Kernel kernel) {
  return torch_abi::torch_library_impl(library, name, kernel, torch_abi::kVersion) ==
         torch_abi::kSuccess;
}

// What torch knows of this library. Never given back once it is complete: threads may compute until
// the process is gone.
struct Registration {
  torch_abi::LibraryHandle schemas = nullptr, cpu = nullptr, any = nullptr;

  bool complete() {
    using namespace torch_abi;
    if (aoti_torch_library_init_def("roast", kName, 0, &schemas) != kSuccess ||
        aoti_torch_library_init_impl("roast", "CPU", kName, 0, &cpu) != kSuccess ||
        aoti_torch_library_init_impl("roast", "CompositeExplicitAutograd", kName, 0, &any) !=
            kSuccess) {
      return false;
    }
    for (const Operator& each : kOperators) {
      if (!define(schemas, each.name, each.schema) || !implement(cpu, each.name, each.kernel)) {
        return false;
      }
    }
    return define(schemas, "version", "() -> str") && implement(any, "version", version);
  }

  void undo() {
    for (torch_abi::LibraryHandle library : {any, cpu, schemas}) {
      if (library != nullptr) torch_abi::aoti_torch_delete_library_object(library);
    }
  }
};

// Why nothing was registered; `reason` is what torch said.
void explain(const char* reason, roast::Text& text) {
  Value stack[1] = {0};
  if (torch_abi::torch_call_dispatcher("roast::version", "", stack, torch_abi::kVersion) !=
      torch_abi::kSuccess) {
    text << "torch has operators named roast:: already, which are not this library's; load "
         << kName << " before anything else defines them. torch said: " << reason;
    return;
  }
  const Owned<StringOpaque> handle(stack[0]);
  const char* other = "";
  torch_abi::torch_string_c_str(handle.get(), &other);
  text << "another " << kName << " (" << other << ") is already loaded in this process, this one ("
       << ROAST_VERSION << ") stays unused; keep one of the two";
}

// Empty if all went well. An exception here would end the process.
struct Status {
  char text[kMessage] = "";

  Status() {
    Registration registration;
    if (registration.complete()) return;
    char reason[kMessage];
    roast::Text(reason, kMessage) << torch_abi::last_reason();
    registration.undo();
    roast::Text status(text, kMessage);
    explain(reason, status);
  }
};

const Status g_status;

}  // namespace

}  // namespace roast_torch

// Null if torch has the operators from this library, else a sentence that says why not.
extern "C" ROAST_EXPORT const char* roast_torch_status(void) {
  const char* const text = roast_torch::g_status.text;
  return text[0] == 0 ? nullptr : text;
}
