"""save(): trace a live model, hold the trace to the model, and write one archive that needs no code."""

from __future__ import annotations

import io
import logging
import os
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roast_export.archive import ARCHIVE_NOTE, check_names, runs_code
from roast_export.calls import PlainModel, facts_of
from roast_export.cases import unproved
from roast_export.contexts import tell_training
from roast_export.dimensions import flat_shapes
from roast_export.errors import ExportError, InputError
from roast_export.files import replacing
from roast_export.fit import relative_errors
from roast_export.fixed_lengths import fixed_lengths
from roast_export.golden import MEMBER, Golden, chosen, golden, to_text
from roast_export.modes import EXPERTS
from roast_export.printable import to_json
from roast_export.program import Inputs, LoadedProgram, evaluation, layers_of, quiet
from roast_export.state import unchanged
from roast_export.stateful import with_state
from roast_export.storage import own_inputs
from roast_export.trace import prepared, trace
from roast_export.truth import UNDEFINED, Truth, hold_to_module
from roast_export.wrappers import bare

log = logging.getLogger(__name__)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Inputs,
    *,
    dynamic_shapes: Any = None,
    allow_unproved: bool = False,
    state: Literal["inputs"] | None = None,
) -> None:
    """Trace `model` and write one file with graph, arrays and example inputs: a torch.export archive.

    The trace is compared with the model on other values and at other lengths, and what the model gave there
    goes into the archive too: later exports are held to it. The archive holds data only, and opens without
    the model's code.

    dynamic_shapes: which dimensions may have other lengths, as torch.export takes it, or
        {"input": {axis: "name"}}; {} for none. By default every dimension that torch.export can prove and
        that the model runs at other lengths of; an export can fix them later.
    allow_unproved: keep a dimension dynamic that dynamic_shapes asks for, and that the model was seen to run
        at one length of.
    state: "inputs" makes what forward writes into inputs and outputs, as in `export`.

    Raises:
        InputError: the model does not run on the example inputs, or a dimension asked for cannot be dynamic.
        ExportError: the model cannot be traced, its trace computes something else than the model, it calls
            operators of another package, or the file cannot be written.
    """
    if state not in (None, "inputs"):
        raise InputError(f"state {state!r} must be 'inputs' or None")
    example_inputs = own_inputs(example_inputs)
    training = model.training
    with bare(model) as model, evaluation(model), unchanged(model), replacing(path) as target:
        live, example = prepared(model, example_inputs)
        if state == "inputs":
            live, example = with_state(live, example)
        tell_training(live, example, training)
        inputs = example_inputs if example is None else example
        if dynamic_shapes is None or isinstance(live, LoadedProgram):
            program, truth = _most_dynamic(live, inputs)
            told = fixed_lengths(live, program, inputs) if isinstance(inputs, dict) else []
        else:
            program, truth = _as_asked(live, inputs, dynamic_shapes, allow_unproved)
            told = []
        check_names([*program.state_dict, *program.constants])
        note = {
            "producer": f"roast-export {version('roast-export')}",
            "layers": {layer.name: layer.mapping.to_list() for layer in layers_of(program)},
            "errors": relative_errors(model),
            "facts": [*facts_of(live), *told, *(text for text in truth.warnings if text == UNDEFINED)],
        }
        for node in program.graph.nodes:
            # Where the user's code lies is nobody's business but theirs.
            node.meta.pop("stack_trace", None)
        extra = {ARCHIVE_NOTE: to_json(note, indent=None)}
        goldens = _goldens(live, truth)
        if goldens:
            extra[MEMBER] = to_text(goldens)
        # torch's writer of files ends the process where the disk is full.
        archive = io.BytesIO()
        with quiet():
            torch.export.save(program, archive, extra_files=extra)
        target.write_bytes(archive.getbuffer())
        reason = runs_code(target)
        if reason is not None:
            raise ExportError(
                f"the archive would not open, because it needs code of another package ({reason}); choose an "
                "implementation in torch's own operators (for the experts of a transformers model: "
                f"model.set_experts_implementation({EXPERTS!r}))"
            )


def _as_asked(
    live: nn.Module, inputs: Inputs, shapes: Any, allow_unproved: bool
) -> tuple[ExportedProgram, Truth]:
    program = trace(live, inputs, flat_shapes(live, shapes) if isinstance(live, PlainModel) else shapes)
    truth = hold_to_module(live, program, inputs)
    if truth.unvaried and not allow_unproved:
        raise InputError(unproved(truth.unvaried))
    return program, truth


def _most_dynamic(live: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Truth]:
    """As dynamic as the model can be traced, and as it was seen to be."""
    program, fixed = _traced(live, inputs)
    truth = hold_to_module(live, program, inputs)
    if truth.unvaried:
        log.warning(
            "fixed at the example's lengths, for the model runs at no other: %s", ", ".join(truth.unvaried)
        )
        fixed |= {place for places in truth.unvaried.values() for place in places}
        program = trace(live, inputs, every_dimension=True, fixed=fixed)
        truth = hold_to_module(live, program, inputs)
    return program, truth


def _traced(live: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, set[tuple[str, int]]]:
    """The trace, and the dimensions that it has fixed because torch.export takes them in no other way."""
    if isinstance(live, LoadedProgram):
        return live.program, set()
    assert isinstance(inputs, dict)
    places = {(n, axis) for n, v in inputs.items() if isinstance(v, Tensor) for axis in range(v.dim())}
    attempts = {
        "every dimension is dynamic": set(),
        "only the first dimension of each input is dynamic": {place for place in places if place[1] > 0},
        "no dimension is dynamic": places,
    }
    first: Exception | None = None
    for said, fixed in attempts.items():
        try:
            program = trace(live, inputs, every_dimension=True, fixed=fixed)
        except (ExportError, InputError) as error:
            first = first or error
            continue
        if first is not None:
            log.warning("%s, for torch.export cannot trace the model otherwise: %s", said, first)
        return program, set(fixed)
    assert first is not None
    raise first


def _goldens(live: nn.Module, truth: Truth) -> list[Golden]:
    """What the module gave: calls in a row first, then other lengths. An archive keeps what it had."""
    if isinstance(live, LoadedProgram):
        return live.goldens
    first = {name: place for place, name in enumerate(("call", "random"))}
    ordered = sorted(truth.probes, key=lambda probe: first.get(probe[0].partition(" ")[0], len(first)))
    return chosen([golden(name, values, outputs) for name, values, outputs in ordered])
