"""Exported program in, torch.export archive out, in a native and a portable form.

The native form holds the operators of the library, and opens where they are registered. In the
portable form they are decomposed into aten operators (torch_mapping.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import traceback

from roast_export import torch_mapping
from roast_export.archive import check_names
from roast_export.errors import ExportError
from roast_export.note import NOTE, note_of
from roast_export.onnx_ops import needs_stream
from roast_export.program import DimNames, layers_of, quiet
from roast_export.torch_zip import deflated

TAG = "roast"


def write_pt2(
    program: ExportedProgram, path: Path, *, portable: bool = False, dim_names: DimNames | None = None
) -> None:
    """Write a torch.export archive that holds data only. dim_names: see signature.

    Raises:
        ExportError: a weight has no portable form, or a name that an archive may not hold.
    """
    check_names([*program.state_dict, *program.constants])
    layers = layers_of(program)
    if portable:
        program = decomposed(program)
        places = _places(program, len(layers))
    else:
        places = [layer.node for layer in layers]
    note = note_of(program, "pt2", portable, list(zip(places, layers, strict=True)), dim_names)
    for node in program.graph.nodes:
        # Where the user's code lies is nobody's business but theirs.
        node.meta.pop("stack_trace", None)
    with quiet(), deflated(path) as large, _without_example(program):
        torch.export.save(program, large, extra_files={NOTE: note.to_json()})


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with its virtual weights in aten operators, one index per run of a tile.

    Nodes that came of the k-th use of a virtual weight have meta["custom"]["roast"] = k.

    Raises:
        ExportError: a layer's slots or signs are drawn from MT19937.
    """
    for layer in layers_of(program):
        if needs_stream(layer.mapping):
            # torch 2.13 loses constants that a decomposition brings along, and packed signs would be one.
            raise ExportError(
                f"{layer.name}: slots or signs drawn from MT19937 have no portable .pt2; export without "
                "--portable and ship the library, or to torchscript or onnx"
            )
    uses = count()
    table: dict[Any, Callable[..., Any]] = {
        torch.ops.roast.gather.default: partial(_gather, uses),
        torch.ops.roast.embedding.default: partial(_embedding, uses),
        torch.ops.roast.linear.default: partial(_linear, uses),
    }
    with quiet(), _without_stacks(program):
        result: ExportedProgram = program.run_decompositions(table)
    return result


def _places(program: ExportedProgram, uses: int) -> list[str]:
    """For each use "weight", or "rows ids" of a lookup: the nodes where the file has them."""
    nodes: list[list[torch.fx.Node]] = [[] for _ in range(uses)]
    for node in program.graph.nodes:
        use = (node.meta.get("custom") or {}).get(TAG)
        if use is not None:
            nodes[use].append(node)
    arrays = {spec.arg.name for spec in program.graph_signature.input_specs if spec.target is not None}
    places = []
    for mine in nodes:
        outside = [a for n in mine for a in n.all_input_nodes if a not in mine and a.name not in arrays]
        ids = [node.name for node in outside if isinstance(node.meta["val"], Tensor)]
        places.append(" ".join([mine[-1].name, *dict.fromkeys(ids)]))
    return places


@contextmanager
def _without_example(program: ExportedProgram) -> Iterator[None]:
    """The example can be larger than the model, and whoever runs the file brings inputs."""
    example, program._example_inputs = program._example_inputs, None
    try:
        yield
    finally:
        program._example_inputs = example


@contextmanager
def _without_stacks(program: ExportedProgram) -> Iterator[None]:
    """The graph without notes on modules: torch would look for the signs of a layer inside its module."""
    stacks = {node: node.meta.pop("nn_module_stack", None) for node in program.graph.nodes}
    try:
        yield
    finally:
        for node, stack in stacks.items():
            if stack is not None:
                node.meta["nn_module_stack"] = stack


def _no_signs() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _gather(uses: Iterator[int], memory: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    with traceback.preserve_node_meta(), traceback.annotate({TAG: next(uses)}):
        return torch_mapping.gather(memory, list(mapping), scale, _no_signs())


def _embedding(
    uses: Iterator[int], memory: Tensor, ids: Tensor, mapping: Sequence[int], scale: float
) -> Tensor:
    with traceback.preserve_node_meta(), traceback.annotate({TAG: next(uses)}):
        return torch_mapping.embedding(memory, ids, list(mapping), scale, _no_signs())


def _linear(
    uses: Iterator[int],
    x: Tensor,
    memory: Tensor,
    bias: Tensor | None,
    mapping: Sequence[int],
    scale: float,
) -> Tensor:
    return torch.nn.functional.linear(x, _gather(uses, memory, mapping, scale).flatten(1), bias)
