"""Which of torch's operators a file may call: those that compute tensors from tensors and do nothing else.

A file can name any operator that torch has registered, and some of them write files (aten::save), map
files (aten::from_file), or trust what they are given (aten::_sparse_csr_tensor_unsafe reads outside its
tensors). An operator is allowed if no rule below speaks against it.
"""

from __future__ import annotations

import re
from functools import cache

import torch

_DENIED = re.compile(
    # files, processes, the terminal, global state
    r"save|from_file|load|warn|.*seed.*|Generator|to_here|.*owner.*|local_value|wait|record_stream"
    r"|set_grad_enabled|.*autocast.*|.*_grad|.*plan_cache.*|is_vulkan_available|has_torch_function"
    # storage, layout and names of a tensor changed behind its back
    r"|set_.*|resize.*|as_strided.*|rename.*|refine_names|align_.*|requires_grad_|data|storage.*|pin_memory"
    r"|.*_copy_to.*|copy_sparse_to_sparse_|Delete"
    # gradients, which no exported graph computes, and kernels that trust their arguments
    r"|.*backward.*|slice_inverse|segment_reduce|batch_norm_.*"
    # formats whose operators trust their indices
    r"|.*unsafe.*|.*sparse.*|.*cs[rc].*|.*bs[rc].*|.*coo.*|.*nested.*|.*jagged.*|.*padded.*|.*coalesce.*"
    r"|.*mkldnn.*|.*cudnn.*|.*miopen.*|.*fbgemm.*|.*quantize.*|quantized_.*|empty_quantized|.*qparams.*|.*obs_fake.*|.*packed.*|.*prepack.*"
    r"|smm|hspmm|sspaddmm|crow_indices|col_indices|ccol_indices|row_indices|indices|values|.*philox.*|.*foreach.*|.*fused_adam.*"
)
"""Names of aten that are refused, although they do not begin with an underscore."""

_UNDERSCORED = {
    "__and__", "__contains__", "__derive_index", "__getitem__", "__is__", "__isnot__", "__lshift__",
    "__not__", "__or__", "__range_length", "__rshift__", "__xor__", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "_assert_scalar", "_assert_tensor_metadata", "_cdist_forward", "_convolution",
    "_embedding_bag", "_embedding_bag_forward_only", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_fused_rms_norm",
    "_grouped_mm", "_is_all_true", "_is_any_true", "_local_scalar_dense", "_log_softmax",
    "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training", "_prelu_kernel", "_reshape_copy", "_safe_softmax",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu", "_set_item",
    "_shape_as_tensor", "_softmax", "_stack", "_tensor_to_list", "_thnn_fused_gru_cell",
    "_thnn_fused_lstm_cell", "_to_copy", "_trilinear", "_unique2", "_unsafe_index", "_unsafe_index_put",
    "_unsafe_view", "_unwrap_optional", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm",
    "_weight_norm_interface",
}  # fmt: skip
"""Private names of aten that traced graphs hold. A few of these crash over some values, as public ones do:
commands therefore work in a child process (watched.py)."""

_PRIM = {
    "AllocateTensor", "ConstantChunk", "ListConstruct", "ModuleContainerIndex", "NumToTensor",
    "RaiseException", "StringIndex", "TupleConstruct", "TupleIndex", "TupleUnpack", "Uninitialized",
    "VarConcat", "VarStack", "abs", "data", "device", "dtype", "is_cpu", "is_cuda", "is_meta", "is_mkldnn",
    "is_nested", "is_quantized", "is_sparse", "isinstance", "isnot", "itemsize", "layout", "max", "min",
    "nbytes", "rangelist", "requires_grad", "shape", "tolist", "type", "unchecked_cast",
    "unchecked_unwrap_optional",
}  # fmt: skip


def is_functional(name: str) -> bool:
    """Whether the operator `name` ("aten::add") may be called by a file that nobody trusts."""
    namespace, _, base = name.partition("::")
    if namespace == "aten":
        return base in _UNDERSCORED if base.startswith("_") else _DENIED.fullmatch(base) is None
    return namespace == "roast" or (namespace == "prim" and base in _PRIM)


@cache
def refused_words() -> frozenset[str]:
    """Names of registered operators, without their namespace, that no allowed operator has too."""
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    allowed = {name.partition("::")[2] for name in names if is_functional(name)}
    return frozenset({name.partition("::")[2] for name in names} - allowed)


@cache
def refused_namespaces() -> frozenset[str]:
    """Namespaces of registered operators in which nothing is allowed."""
    names = {schema.name.partition("::")[0] for schema in torch._C._jit_get_all_schemas()}
    return frozenset(names - {"aten", "prim", "roast"})
