// The operators as torch calls them. Each takes its arguments off the stack and leaves its result.
#pragma once

#include "torch_abi.h"

namespace roast_torch {

using torch_abi::Value;

void gather(Value* stack, uint64_t n_arguments, uint64_t n_results);
void gather_backward(Value* stack, uint64_t n_arguments, uint64_t n_results);
void embedding(Value* stack, uint64_t n_arguments, uint64_t n_results);
void embedding_backward(Value* stack, uint64_t n_arguments, uint64_t n_results);
void linear(Value* stack, uint64_t n_arguments, uint64_t n_results);

}  // namespace roast_torch
