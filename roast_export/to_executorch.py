"""Exported program in, ExecuTorch's .pte out, in two forms.

1. portable: virtual weights in core aten operators. It runs in every ExecuTorch, slowly: each layer's weight
   is rebuilt when the layer runs.
2. native: the operators `roast::gather`, `roast::linear` and `roast::embedding`, which the program that loads
   the file must have (custom_ops/executorch_op.cc).

Beside the program a file holds a note: the name of each weight, and the number of the value that is the
weight, or the looked-up rows and their ids. Stored tensors have their names. So a proof can cut each weight
out of the very program that runs (pte_program.py).
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from roast_export.arrays import array_of
from roast_export.errors import ExportError, InputError
from roast_export.note import note_of
from roast_export.program import DimNames, kept_bytes, layers_of, quiet
from roast_export.pte_program import DELEGATE, Call, PteProgram, register_out_forms, with_note, written
from roast_export.size import Limits, limits, nodes_of_program
from roast_export.to_pt2 import TAG, decomposed

PORTABLE_BYTES = 15 * 1024
"""What the arithmetic of a layer takes in the portable form, beside the size gate."""

XNNPACK = "XnnpackBackend"
"""What a program calls the one delegate of files of ours."""

VIEW = "executorch_prim::et_view.default"
"""The instruction that gives a value another shape, where the shape is known only when it runs."""


def write(
    program: ExportedProgram,
    path: Path,
    *,
    portable: bool = False,
    delegate: str | None = None,
    dim_names: DimNames | None = None,
) -> int:
    """Write `program` to `path`; the bytes written. dim_names: see signature.

    delegate: "xnnpack" hands over to XNNPACK what it knows: layers that were never compressed, and what
        lies between layers. Virtual weights stay virtual.

    Raises:
        InputError: the delegate is not known.
        ExportError: executorch is not installed, cannot express the model, or the file would not stay small.
    """
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise ExportError(
            f"target executorch needs the package executorch ({error}); run `pip install executorch==1.5.1`"
        ) from error
    if delegate not in (None, "xnnpack"):
        raise InputError(f"delegate {delegate!r} is not known; leave it out or use 'xnnpack'")
    register_out_forms()
    layers = layers_of(program)
    lowered = _floored(decomposed(program)) if portable else program
    try:
        with quiet(), torch.no_grad():
            manager = _lowered(lowered, delegate)
            file = deserialize_pte_binary(manager.buffer)
    except OSError:
        # It writes files of its own, and the disk may be full.
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"executorch cannot express this model: {reason[0] if reason else error!r}"
        ) from error
    found = PteProgram(file)
    final = manager.exported_program("forward")
    _name_stored(final, found, set(program.state_dict))
    places = _traced(final, found, len(layers)) if portable else _called(found)
    note = note_of(program, "executorch", portable, list(zip(places, layers, strict=True)), dim_names)
    buffer = written(with_note(file, note.to_json()))
    complaint = _limits(program, portable).complaint(len(buffer), found.tensor_bytes)
    if complaint:
        raise ExportError(f"{path.name}: the file {complaint}")
    path.write_bytes(buffer)
    return len(buffer)


def _lowered(program: ExportedProgram, delegate: str | None) -> Any:
    """executorch's own manager of the finished program."""
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge,
        to_edge_transform_and_lower,
    )

    # Its own check knows aten operators only.
    config = EdgeCompileConfig(_check_ir_validity=False)
    if delegate is None:
        return to_edge(program, compile_config=config).to_executorch()
    edge = to_edge_transform_and_lower(program, partitioner=[_xnnpack()], compile_config=config)
    # With every reshaped value a value of its own, it can be told which ones a delegate writes.
    return edge.to_executorch(ExecutorchBackendConfig(remove_view_copy=False))


def _xnnpack() -> Any:
    """XNNPACK's choice of operators without those of virtual weights, which must stay in the program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class Kept(XnnpackPartitioner):  # type: ignore[misc]
        def get_matched_nodes_from_configs(self, program: Any) -> list[list[torch.fx.Node]]:
            found = super().get_matched_nodes_from_configs(program)
            return [match for match in found if not any(map(_is_virtual, match))]

    return Kept()


def _is_virtual(node: torch.fx.Node) -> bool:
    """Whether a node is, or came of, a use of a virtual weight."""
    return _operator_of(node).startswith("roast::") or _use_of(node) is not None


def _operator_of(node: torch.fx.Node) -> str:
    """Such as "aten::mul.out", in every dialect; empty for what has no schema."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else f"{schema.name}.{schema.overload_name or 'default'}"


def _use_of(node: torch.fx.Node) -> int | None:
    """Which use of a virtual weight a node came of, or None."""
    found: int | None = (node.meta.get("custom") or {}).get(TAG)
    return found


def _called(file: PteProgram) -> list[str]:
    """For each use of a weight, the value that our operator writes."""
    return [str(call.args[-1]) for call in file.calls if call.operator.startswith("roast::")]


def _traced(program: ExportedProgram, file: PteProgram, uses: int) -> list[str]:
    """For each use "weight", or "rows ids" of a lookup: numbers of values."""
    nodes: list[list[torch.fx.Node]] = [[] for _ in range(uses)]
    for node in program.graph.nodes:
        use = _use_of(node)
        if use is not None and node.op == "call_function" and not _allocates(node):
            nodes[use].append(node)
    numbers = _numbers(program, file)
    inputs = set(program.graph_signature.user_inputs)
    stored = {node.name for node in program.graph.nodes if node.op == "placeholder"} - inputs
    places = []
    for mine in nodes:
        read = [a for n in mine for a in n.all_input_nodes if a not in mine and a.name not in stored]
        data = [node for node in read if isinstance(node.meta.get("val"), torch.Tensor)]
        names = [mine[-1].name, *(node.name for node in data if not _allocates(node))] if mine else [""]
        absent = [name for name in names if name not in numbers]
        if absent:
            raise ExportError("executorch took a virtual weight into a delegate; export without one")
        places.append(" ".join(str(numbers[name]) for name in dict.fromkeys(names)))
    return places


def _numbers(program: ExportedProgram, file: PteProgram) -> dict[str, int]:
    """The value of each node; of a reshaped one the value that it is a view of."""
    inputs = dict(zip(program.graph_signature.user_inputs, file.plan.inputs, strict=True))
    numbers: dict[str, int] = {str(name): value for name, value in inputs.items()}
    calls = iter(file.calls)
    for node in program.graph.nodes:
        if node.op != "call_function" or _allocates(node) or node.target is operator.getitem:
            continue
        if _is_view(node) and _is_static(node):
            source = node.args[0].name
            if source in numbers:
                numbers[node.name] = numbers[source]
            continue
        call = next(calls, None)
        if call is None or not _is_call_of(call, node):
            raise ExportError(f"executorch's program does not follow its graph at {node.name}")
        numbers[node.name] = call.args[-1]
    return numbers


def _is_call_of(call: Call, node: torch.fx.Node) -> bool:
    if _is_view(node):
        return call.operator == VIEW
    return call.operator == (DELEGATE if "delegate" in str(node.target) else _operator_of(node))


def _is_static(node: torch.fx.Node) -> bool:
    """Whether a value has one shape. Of such a value a view is a place in the plan, else an instruction."""
    return all(isinstance(length, int) for length in node.meta["val"].shape)


def _allocates(node: torch.fx.Node) -> bool:
    from executorch.exir import memory

    return node.target is memory.alloc


def _is_view(node: torch.fx.Node) -> bool:
    from executorch.exir import memory

    return node.target is memory.view


def _name_stored(program: ExportedProgram, file: PteProgram, known: set[str]) -> None:
    """Give the tensors of the model's parameters and buffers their names."""
    from executorch.exir.schema import ExtraTensorInfo

    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    for value, placeholder in enumerate(placeholders):
        name = names.get(placeholder)
        if name not in known or not file.is_stored(value):
            continue
        expected = array_of(program.state_dict[name].contiguous())
        if file.stored(value).tobytes() != expected.tobytes():
            raise ExportError(f"executorch's program does not hold {name} where its graph says")
        file.values[value].extra_tensor_info = ExtraTensorInfo(fully_qualified_name=name)


def _limits(program: ExportedProgram, portable: bool) -> Limits:
    layers = layers_of(program)
    arrays = {layer.array: layer.memory for layer in layers}.values()
    stored = sum(array.numel() * array.element_size() for array in arrays) + kept_bytes(program)
    code = PORTABLE_BYTES * len(layers) if portable else 0
    return limits(stored, len(layers), nodes_of_program(program), code)


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
