"""Virtual weights that a file has written out in standard operators: found, matched to layers, compared.

A read of the array is matched to the layer whose weight it gives, bit by bit. What matches none goes with the
layer that it is most like, so that a changed coefficient or scale is named after its layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from roast_export import probe, torch_ops
from roast_export.array_reads import Graph, Read
from roast_export.artifact import Tell
from roast_export.compare import compare_bits, failed
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from roast_export.program import VirtualLayer
from roast_export.report import Check
from roast_export.runtimes import Runtime, open_unoptimised
from roast_export.to_onnx import array_names

SAMPLE = 256
"""Rows of a table by which a lookup is matched to its layer; all of them are compared after that."""

Key = tuple[str, Mapping, float, bool]
"""One weight as a graph has it: array, record, scale, and whether rows of it are looked up."""


def check(
    model: onnx.ModelProto, layers: list[VirtualLayer], runtimes: list[Runtime], tell: Tell
) -> Iterator[Check]:
    """Every element of every weight in every runtime; every layer is read, and nothing else is."""
    graph = Graph(model)
    places, lacking = _matched(graph, layers, tell)
    for done, place in enumerate(places):
        tell("weights", done, len(places))
        if place.layer is None:
            error = RoastError("the file reads the array for something that the model does not have")
            yield failed("file", "weight", place.read.array, "all elements", error)
            continue
        for runtime in runtimes:
            try:
                yield _compare(graph, place, place.layer, runtime)
            except Exception as error:
                yield failed(runtime.name, "weight", place.layer.name, "all elements", error)
    for layer in lacking:
        yield failed("file", "weight", layer.name, "", RoastError("the file has no such layer"))


@dataclass
class _Place:
    """A read, and what it was found to be: the layer, and the value that is its weight."""

    read: Read
    layer: VirtualLayer | None = None
    value: str = ""
    computed: dict[str, NDArray[Any] | None] = field(default_factory=dict)
    """Values of its chain by name, of a lookup for the ids of `_sample`; None for what cannot be computed."""


def _matched(graph: Graph, layers: list[VirtualLayer], tell: Tell) -> tuple[list[_Place], list[VirtualLayer]]:
    """Reads with their layers, and the layers that no read gives."""
    names = array_names(layers)
    weights: dict[Key, VirtualLayer] = {}
    for layer in layers:
        weights.setdefault(_key(layer), layer)
    # Equal uses of a weight may have become one, or not.
    left = Counter(_key(layer) for layer in layers)
    places = [_Place(read) for read in graph.reads(list(dict.fromkeys(map(_array(names), layers))))]
    for exactly in (True, False):
        for done, place in enumerate(places):
            tell("matching weights", done, len(places))
            if place.layer is not None or not place.read.values:
                continue
            fitting = [w for key, w in weights.items() if left[key] and _array(names)(w) == place.read.array]
            fitting.sort(key=lambda layer: _likeness(place.read, layer), reverse=True)
            found = _equal(graph, place, fitting) if exactly else _nearest(graph, place, fitting)
            place.computed.clear()
            if found is not None:
                place.layer, place.value = found
                left[_key(place.layer)] -= 1
    given = {_key(place.layer) for place in places if place.layer is not None}
    return places, [layer for key, layer in weights.items() if key not in given]


def _array(names: dict[str, str]) -> Any:
    """What the file calls the array of a layer."""
    return lambda layer: names.get(layer.array, layer.array)


def _key(layer: VirtualLayer) -> Key:
    return layer.array, layer.mapping, layer.scale, layer.kind == "embedding"


def _likeness(read: Read, layer: VirtualLayer) -> tuple[bool, int]:
    """A lookup is like a lookup first of all; then, how many numbers of the layer's record take part."""
    numbers = {*layer.mapping.to_list(), float(np.float32(layer.scale))}
    return (read.ids is not None) == (layer.kind == "embedding"), len(numbers & read.numbers)


def _equal(graph: Graph, place: _Place, layers: list[VirtualLayer]) -> tuple[VirtualLayer, str] | None:
    """The layer whose weight is among the values of a read, bit by bit; the last such value."""
    for layer in layers:
        for value in reversed(place.read.values):
            if _share(graph, place, value, layer) == 1.0:
                return layer, value
    return None


def _nearest(graph: Graph, place: _Place, layers: list[VirtualLayer]) -> tuple[VirtualLayer, str] | None:
    """The layer that a read is most like: nearly all elements, or else most numbers of the record."""
    found = [
        ((share > 0.5, _likeness(place.read, layer), share), layer, value)
        for layer in layers
        for value in place.read.values
        if (share := _share(graph, place, value, layer)) is not None
    ]
    return max(found, key=lambda item: item[0])[1:] if found else None


def _share(graph: Graph, place: _Place, value: str, layer: VirtualLayer) -> float | None:
    """How much of a value is the layer's weight; None if it has another size."""
    if value not in place.computed:
        place.computed[value] = _computed(graph, place.read, value, layer)
    actual = place.computed[value]
    expected = None if actual is None else _expected(place.read, layer, actual)
    if actual is None or expected is None:
        return None
    equal = _as_weight(actual, expected.shape).view(np.uint32) == expected.view(np.uint32)
    return float(equal.mean()) if equal.size else 1.0


def _computed(graph: Graph, read: Read, value: str, layer: VirtualLayer) -> NDArray[Any] | None:
    try:
        run = open_unoptimised(graph.piece(value, read.ids).SerializeToString())
        found = run({} if read.ids is None else {read.ids: _sample(layer)})[0]
    except Exception:
        # Not every value of a chain stands by itself; that none fits is what gets reported.
        return None
    return np.ascontiguousarray(found) if found.dtype == np.float32 else None


def _sample(layer: VirtualLayer) -> NDArray[np.int64]:
    """Ids of both ends of a table and between."""
    return np.linspace(0, layer.mapping.shape[0] - 1, min(SAMPLE, layer.mapping.shape[0])).astype(np.int64)


def _expected(read: Read, layer: VirtualLayer, actual: NDArray[Any]) -> NDArray[np.float32] | None:
    """What the value must be if it is the layer's; None if it has another size."""
    shape = layer.mapping.shape
    if layer.kind != "embedding":
        fits = actual.shape in (shape, shape[::-1])
        return probe.expected_weight(layer) if fits and read.ids is None else None
    if actual.ndim == 0 or actual.size % shape[1]:
        return None
    if read.ids is not None:
        ids = _sample(layer)
        return _rows(layer, ids) if actual.size == ids.size * shape[1] else None
    # The ids are constants of the model that are gone: rows of the table, whichever they are.
    table = probe.expected_weight(layer)
    known = {row.tobytes(): k for k, row in enumerate(table)}
    ids = np.array([known.get(row.tobytes(), 0) for row in actual.reshape(-1, shape[1])], np.int64)
    return table[ids]


def _rows(layer: VirtualLayer, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch_ops.without_library():
        rows = torch_ops.embedding(layer.memory, torch.from_numpy(ids), layer.mapping.to_list(), layer.scale)
    found: NDArray[np.float32] = rows.numpy()
    return found


def _as_weight(actual: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A value in the shape of the weight: products take it transposed, lookups in other shapes."""
    if actual.shape == shape[::-1] and actual.shape != shape:
        return np.ascontiguousarray(actual.T)
    return actual.reshape(shape) if actual.size == int(np.prod(shape)) else actual


def _compare(graph: Graph, place: _Place, layer: VirtualLayer, runtime: Runtime) -> Check:
    run, ids = runtime.open(graph.piece(place.value, place.read.ids).SerializeToString()), place.read.ids
    if ids is not None:
        dim = layer.mapping.shape[1]
        return probe.check_rows(
            layer, layer.name, runtime.name, lambda wanted: run({ids: wanted})[0].reshape(-1, dim)
        )
    actual = run({})[0]
    expected = _expected(place.read, layer, actual)
    if expected is None:
        raise RoastError(f"its weight has the shape {list(actual.shape)}")
    actual = _as_weight(actual, expected.shape)
    if layer.kind != "embedding":
        return compare_bits(runtime.name, layer.name, "all elements", expected, actual)
    # Places among these rows are not places in the table.
    found = compare_bits(runtime.name, layer.name, "the rows that it takes", expected, actual)
    return replace(found, index=())
