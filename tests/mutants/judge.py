"""Whether a mutant differs, decided without the proof, and whether the proof refuses it.

A mutant differs if plain onnxruntime gives for it, on fresh inputs, an element that is farther from PyTorch's
than the bound on outputs. The fresh inputs come from the model's own generator and not from the proof's.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import roast_export
from roast_export.bounds import output_bounds, proves
from roast_export.cases import arithmetic
from roast_export.compare import Array, Bound, compare_within
from roast_export.errors import RoastError
from roast_export.program import LoadedProgram, call, flat_inputs
from roast_export.report import Measurement
from roast_export.verify import verify
from tests.mutants.mutate import Mutant, mutants
from tests.zoo.architecture import Architecture, Draw
from tests.zoo.compare import leaves

FRESH = ((101, 1.0), (102, 1.0), (103, 4.0))
"""Seeds of fresh inputs, and the deviation of their floats; each is drawn at every size of the model."""


class Scaled(Draw):
    """Random values as in the zoo, with floats of another deviation."""

    def __init__(self, seed: int, deviation: float) -> None:
        super().__init__(seed)
        self.deviation = deviation

    def floats(self, *shape: int) -> Tensor:
        return super().floats(*shape) * self.deviation


@dataclass
class Fresh:
    """One set of inputs by name, what PyTorch makes of it, and how far each output may be off."""

    feeds: dict[str, Array]
    expected: list[Array]
    bounds: list[Bound | None]


@dataclass
class Score:
    """What became of the mutants of one model."""

    name: str
    mutants: int = 0
    invalid: int = 0
    """Mutants that onnxruntime does not load or run: they are not counted."""
    differ: int = 0
    refused: int = 0
    survivors: list[str] = field(default_factory=list)
    """Mutants that differ, and that the proof let through."""
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Share of the mutants that differ which the proof refused."""
        return self.refused / self.differ if self.differ else 1.0


class Judged:
    """A model with its exported file and fresh inputs. proof: further arguments of `verify`."""

    def __init__(self, entry: Architecture, folder: Path) -> None:
        self.entry, self.folder = entry, folder
        self.proof: dict[str, Any] = {}
        torch.manual_seed(0)
        live = roast_export.compress(entry.build().eval(), entry.ratio, min_params=entry.min_params).eval()
        archive = folder / "archive.pt"
        roast_export.save(live, archive, entry.inputs(Draw(0), *entry.sizes[0]), **entry.save)
        self.model: nn.Module = roast_export.load(archive)
        self.path = folder / "model.onnx"
        roast_export.export(self.model, self.path, verify=False)
        self.right = onnx.load(self.path)
        self.fresh = list(self._fresh())

    def _fresh(self) -> Iterator[Fresh]:
        assert isinstance(self.model, LoadedProgram)
        program = self.model.program
        for seed, deviation in FRESH:
            for size in self.entry.sizes:
                given = self.entry.inputs(Scaled(seed, deviation), *size)
                values = leaves(list(given.values()) if isinstance(given, dict) else given)
                names = list(flat_inputs(program, tuple(values)))
                feeds = dict(zip(names, values, strict=True))
                with torch.no_grad(), arithmetic(program):
                    expected = [value.numpy() for value in leaves(call(self.model, program, feeds))]
                arrays = {name: value.numpy() for name, value in feeds.items()}
                bounds = output_bounds(self.model, program, arrays)
                useful = [b if proves(b, y) else None for b, y in zip(bounds, expected, strict=True)]
                yield Fresh(arrays, expected, useful)

    def differs(self, model: onnx.ModelProto) -> bool | None:
        """Whether an output of the file is beyond its bound on fresh inputs; None if it does not run."""
        found = False
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), _silent(), providers=["CPUExecutionProvider"]
            )
            for fresh in self.fresh:
                wanted = {value.name: fresh.feeds[value.name] for value in session.get_inputs()}
                for y, actual, bound in zip(
                    fresh.expected, session.run(None, wanted), fresh.bounds, strict=True
                ):
                    if bound is not None:
                        found |= not compare_within("", "", "", y, np.asarray(actual), bound).passed
        except Exception:
            return None
        return found

    def refused(self, model: onnx.ModelProto) -> bool:
        """Whether the proof refuses the file."""
        path = self.folder / "mutant.onnx"
        onnx.save(model, path)
        try:
            return not verify(self.model, path, runtimes=["onnxruntime portable"], **self.proof).passed
        except RoastError:
            return True

    def score(self, wanted: int, seed: int = 1, tell: Callable[[int], Any] = lambda done: None) -> Score:
        """The verdicts on the first `wanted` valid mutants in the order of this seed."""
        score = Score(self.entry.name)
        for mutant in mutants(self.right, seed):
            if score.mutants == wanted:
                break
            self._judge(mutant, score)
            tell(score.mutants)
        return score

    def _judge(self, mutant: Mutant, score: Score) -> None:
        differs = self.differs(mutant.model)
        if differs is None:
            score.invalid += 1
            return
        score.mutants += 1
        score.kinds[mutant.kind] += 1
        if not differs:
            return
        score.differ += 1
        if self.refused(mutant.model):
            score.refused += 1
        else:
            score.survivors.append(f"{mutant.kind}: {mutant.what}")


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


@contextmanager
def verdicts_only() -> Iterator[None]:
    """Proofs without what changes no verdict: measured costs, the search for the layer that differs first,
    and bounds of inputs whose bounds are known."""
    verifying, bounding, onnx_file = (
        importlib.import_module(f"roast_export.{name}") for name in ("verify", "case_bounds", "onnx_file")
    )
    known: dict[Any, list[Bound]] = {}

    def remembered(model: nn.Module, program: Any, feeds: dict[str, Array]) -> list[Bound]:
        key = (id(model), *((name, value.shape, value.tobytes()) for name, value in feeds.items()))
        if key not in known:
            known[key] = output_bounds(model, program, feeds)
        return known[key]

    def no_measurement(*args: Any, label: str, **options: Any) -> Measurement:
        return Measurement(label, 1.0, 1, 1, 1, 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "measure", no_measurement)
        patch.setattr(bounding, "output_bounds", remembered)
        patch.setattr(onnx_file.OnnxFile, "first_difference", lambda *args: [])
        yield
