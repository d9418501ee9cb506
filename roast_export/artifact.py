"""What a proof needs to know of an exported file, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from roast_export.compare import failed
from roast_export.errors import RoastError
from roast_export.program import Dims, VirtualLayer
from roast_export.report import Check, Layer

if TYPE_CHECKING:
    from roast_export.cases import Case
    from roast_export.runtimes import Runtime
    from roast_export.subject import Subject

Tell = Callable[[str, int, int], None]


@dataclass
class Artifact(ABC):
    """An exported file, opened."""

    path: Path
    target: str
    """What --to calls it."""
    layers: list[Layer]
    """Its virtual weights, as the file states them."""
    inputs: dict[str, tuple[str, Dims]]
    """Element type and lengths of each input, in order."""
    outputs: list[str]
    array_bytes: int
    materialized: bool = False
    """Whether runtimes are meant to expand the weights."""
    portable: bool = False
    """Whether it also runs where the library is not."""
    names_weights: bool = True
    """Whether its weights can be read back one by one."""
    warnings: list[str] = field(default_factory=list)
    ranges: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """Least and most length of the dynamic dimensions that have bounds, by name."""
    spelled: dict[str, str] = field(default_factory=dict)
    """What the file itself calls an input, where that is no identifier."""

    def feeds(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Values by the names of `inputs`, by those that the file takes."""
        return {self.spelled.get(name, name): values[name] for name in self.inputs}

    @property
    def file_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def tensor_bytes(self) -> int | None:
        """Bytes of the file's tensors, small ones left out; None where a format does not tell them apart."""
        return None

    @property
    def code_limit(self) -> int:
        """Bytes of machine code that the size gate lets through beside the data."""
        return 0

    @abstractmethod
    def runtimes(self) -> list[Runtime]:
        """Every runtime that takes this format, in the order in which they are tried."""

    @abstractmethod
    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        """The format's own rules, and no dense weight in it or in what its runtime makes of it."""

    @abstractmethod
    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Stored tensors; those whose name the program knows too, or array_names gives, are compared."""

    @abstractmethod
    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        """Every element of every weight in `layers`, by each runtime: equal bits."""

    def first_difference(self, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
        """Where outputs differ: failed checks that name the first layer beyond the bound."""
        return []

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        """What to measure in fresh processes: a label, and arguments of measure()."""
        return []


def each_weight(
    names: list[str],
    subject: Subject,
    usable: list[Runtime],
    tell: Tell,
    check: Callable[[Runtime, int, VirtualLayer], Iterator[Check]],
) -> Iterator[Check]:
    """`check` for the k-th weight of a file in every runtime; whatever goes wrong is a failed check."""
    for runtime in usable:
        for k, name in enumerate(names):
            tell(f"weights in {runtime.name}", k, len(names))
            layer = expected_layer(subject.layers, name)
            try:
                if layer is None:
                    raise RoastError("the model has no such layer")
                yield from check(runtime, k, layer)
            except Exception as error:
                yield failed(runtime.name, "weight", name, "all elements", error)


def expected_layer(layers: list[VirtualLayer], name: str) -> VirtualLayer | None:
    """The model's layer that a file calls `name`, "name#2" for a second use."""
    return next((layer for layer in layers if layer.name == name.partition("#")[0]), None)
