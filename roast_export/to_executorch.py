"""Exported program in, ExecuTorch's .pte out, in two forms.

1. portable: virtual weights in core aten operators. It runs in every ExecuTorch, slowly: each layer's weight
   is rebuilt when the layer runs.
2. native: the operators `roast::gather`, `roast::linear` and `roast::embedding`, which the program that loads
   the file must have (custom_ops/executorch_op.cc).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import library
from torch.export import ExportedProgram

from roast_export.errors import ExportError
from roast_export.program import kept_bytes, layers_of, quiet

SLACK = 1.02
GRAPH_BYTES = 64 * 1024
LAYER_BYTES = {False: 1024, True: 16 * 1024}
"""The size gate, by form (portable or not): SLACK * (arrays + kept) + GRAPH_BYTES + LAYER_BYTES per layer."""

_OUT = {
    "gather": "(Tensor memory, int[] mapping, float scale, *, Tensor(a!) out) -> Tensor(a!)",
    "embedding": "(Tensor memory, Tensor ids, int[] mapping, float scale, *, Tensor(a!) out) -> Tensor(a!)",
    "linear": "(Tensor x, Tensor memory, Tensor? bias, int[] mapping, float scale, *, Tensor(a!) out) "
    "-> Tensor(a!)",
}
"""ExecuTorch runs the forms that write into an output that it planned."""

_REGISTERED: list[library.Library] = []


def write(program: ExportedProgram, path: Path, *, portable: bool = False) -> int:
    """Write `program` to `path`; the bytes written.

    Raises:
        ExportError: executorch is not installed, cannot express the model, or the file would not stay small.
    """
    try:
        from executorch.exir import EdgeCompileConfig, to_edge
    except ImportError as error:
        raise ExportError(
            f"target executorch needs the package executorch ({error}); run `pip install executorch==1.5.1`"
        ) from error
    _register_out_forms()
    limit = _limit(program, portable)
    lowered = _floored(_decomposed(program)) if portable else program
    # Its own check knows aten operators only.
    config = EdgeCompileConfig(_check_ir_validity=False)
    try:
        with quiet(), torch.no_grad():
            buffer = to_edge(lowered, compile_config=config).to_executorch().buffer
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"executorch cannot express this model: {reason[0] if reason else error!r}"
        ) from error
    if len(buffer) > limit:
        raise ExportError(f"{path.name} would have {len(buffer)} bytes, more than {limit}")
    path.write_bytes(buffer)
    return len(buffer)


def _limit(program: ExportedProgram, portable: bool) -> int:
    layers = layers_of(program)
    arrays = {layer.array: layer.memory for layer in layers}.values()
    stored = sum(array.numel() * array.element_size() for array in arrays) + kept_bytes(program)
    return int(SLACK * stored + GRAPH_BYTES + LAYER_BYTES[portable] * len(layers))


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    from roast_export.to_pt2 import decomposed

    return decomposed(program)


def _floored(program: ExportedProgram) -> ExportedProgram:
    """ExecuTorch's remainder takes the dividend's sign: ((x rem p) + p) rem p is floored there too."""
    graph = program.graph
    remainder: Any = torch.ops.aten.remainder.Scalar
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.target is not remainder or value is None or value.dtype != torch.int64:
            continue
        modulus = node.args[1]
        with graph.inserting_after(node):
            raised = graph.call_function(torch.ops.aten.add.Scalar, (node, modulus))
        with graph.inserting_after(raised):
            again = graph.call_function(remainder, (raised, modulus))
        for new in (raised, again):
            new.meta = dict(node.meta)
        node.replace_all_uses_with(again, lambda user, keep=raised: user is not keep)
    program.graph_module.recompile()
    return program


def _register_out_forms() -> None:
    if _REGISTERED:
        return
    ours = library.Library("roast", "FRAGMENT")
    for name, schema in _OUT.items():
        ours.define(f"{name}.out{schema}")
        # Only its presence is asked for when a program is lowered.
        ours.impl(f"{name}.out", _never, "CompositeExplicitAutograd")
    _REGISTERED.append(ours)


def _never(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("this form runs in ExecuTorch only")
