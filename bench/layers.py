"""Products with one weight, and lookups in one table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import graphs
from bench.machine import Peaks
from bench.peers import Peer, Truth, compare, memory_rows, time_rows

ID_SETS = 512
EPSILON = 2.0**-24
MAIN_RATIO = 100
"""The ratio at which the portable form and the element-hashed layer are compared, if it is measured."""


def measure_layer(group: dict, folder: Path, peaks: Peaks) -> dict:
    """All peers of one weight, at every batch size."""
    shape, ratios = tuple(group["shape"]), group["ratios"]
    peers, weights = _layer_peers(folder, shape, ratios)
    generator = np.random.default_rng(1)
    rows, sessions, feeds = [], {}, {}
    for batch in group["batches"]:
        feeds = {"x": generator.standard_normal((batch, shape[1]), np.float32)}
        truths = _products(feeds["x"], weights)
        found, errors = compare(
            peers, feeds, truths, threads=peaks.threads, budget=group["budget"], sessions=sessions
        )
        facts = {"shape": list(shape), "batch": batch}
        rows += time_rows(peers, found, errors, peaks, 2.0 * batch * shape[0] * shape[1], facts)
    sessions.clear()
    memory = []
    if group["memory"]:
        one = {"x": np.ones((1, shape[1]), np.float32)}
        memory = memory_rows(peers, one, {"subject": f"layer {shape[0]}x{shape[1]}"})
    return {"layers": rows, "memory": memory}


def measure_embedding(group: dict, folder: Path, peaks: Peaks) -> dict:
    """Lookups of random ids: the dense table's Gather against tables that do not exist."""
    shape = tuple(group["shape"])
    ids = np.random.default_rng(1).integers(0, shape[0], group["lookups"])
    main = _main_ratio(group["ratios"])
    moved = 4.0 * group["lookups"] * shape[1]
    peers, truths, scale = [], {}, graphs.scale_of(shape)
    for ratio in (main, *(r for r in group["ratios"] if r != main)):
        mapping = graphs.roast_mapping(shape, ratio, rows=True)
        array, file = graphs.array_of(mapping), folder / f"roast{ratio}.onnx"
        graphs.write_roast(file, mapping, array, scale, ids=True)
        table = graphs.expanded_table(mapping, array, scale)
        path = _path(file, "lookup kernel")
        found = [Peer("roast", file, ratio, path, moved, 0.0)]
        if ratio == main:
            dense = folder / "dense.onnx"
            graphs.write_table(dense, table)
            portable = Peer("portable", file, ratio, "function of standard operators", moved, 0.0)
            found = [Peer("dense", dense, 0, "onnxruntime", moved, 0.0), *found, portable]
        truths |= {peer.name: Truth(table[ids], 1.0) for peer in found}
        peers += found
        del table
    rows, sessions = [], {}
    for name, more in (("fresh ids", _more_ids(ids, shape[0])), ("the same ids", [])):
        facts = {"shape": list(shape), "batch": group["lookups"], "case": name}
        found, errors = compare(
            peers,
            {"ids": ids},
            truths,
            threads=peaks.threads,
            budget=group["budget"],
            sessions=sessions,
            more_feeds=more,
        )
        rows += time_rows(peers, found, errors, peaks, 0.0, facts)
    sessions.clear()
    name = f"embedding {shape[0]:,}x{shape[1]}"
    return {
        "embeddings": rows,
        "memory": memory_rows(peers, {"ids": ids}, {"subject": name}) if group["memory"] else [],
    }


def _more_ids(ids: np.ndarray, rows: int) -> list[dict[str, np.ndarray]]:
    """Ids for so many runs that no cache keeps the rows of a table until their turn comes again."""
    generator = np.random.default_rng(2)
    return [{"ids": generator.integers(0, rows, len(ids))} for _ in range(ID_SETS - 1)]


def _layer_peers(
    folder: Path, shape: tuple[int, int], ratios: list[int]
) -> tuple[list[Peer], dict[str, np.ndarray]]:
    """The files, and the dense weight that each of them stands for."""
    scale, main = graphs.scale_of(shape), _main_ratio(ratios)
    exact = 8 * shape[1] ** 0.5 * EPSILON
    size = shape[0] * shape[1]
    peers: list[Peer] = []
    weights: dict[str, np.ndarray] = {}
    for ratio in ratios:
        mapping = graphs.roast_mapping(shape, ratio)
        array, file = graphs.array_of(mapping), folder / f"roast{ratio}.onnx"
        graphs.write_roast(file, mapping, array, scale)
        path = _path(file, "fused kernel")
        found = [Peer("roast", file, ratio, path, 4.0 * size, exact)]
        if ratio == main:
            found.append(Peer("portable", file, ratio, "function of standard operators", 4.0 * size, exact))
        weights |= dict.fromkeys((peer.name for peer in found), graphs.expanded(mapping, array, scale))
        peers += found
    mapping = graphs.hashed_mapping(shape, main)
    array, file = graphs.array_of(mapping), folder / "hashed.onnx"
    graphs.write_roast(file, mapping, array, scale)
    path = _path(file, "fused kernel")
    peers.append(Peer("hashed", file, main, path, 4.0 * size, exact))
    weights[peers[-1].name] = graphs.expanded(mapping, array, scale)
    weight = weights[f"roast {main}x"]
    dense = _dense_peers(folder, weight, exact)
    weights |= {peer.name: weight for peer in dense}
    return [*dense, *peers], weights


def _path(file: Path, native: str) -> str:
    return "function of the file: RoastGather, MatMul" if graphs.without_kernel(file) else native


def _dense_peers(folder: Path, weight: np.ndarray, exact: float) -> list[Peer]:
    """The forms that store every weight, all of the same one."""
    files = {name: folder / f"{name}.onnx" for name in ("dense", "int8", "int4", "fp16")}
    graphs.write_dense(files["dense"], weight)
    graphs.write_int8(files["int8"], files["dense"])
    graphs.write_int4(files["int4"], weight)
    graphs.write_half(files["fp16"], weight)
    block = 4 / graphs.INT4_BLOCK
    widths = {"dense": 4.0, "int8": 1.0, "int4": 0.5 + block, "fp16": 2.0}
    return [
        Peer(
            name,
            files[name],
            weight_bytes=width * weight.size,
            bound=exact if name == "dense" else None,
        )
        for name, width in widths.items()
    ]


def _products(x: np.ndarray, weights: dict[str, np.ndarray]) -> dict[str, Truth]:
    """x W^T by numpy, and |x| |W|^T, which rounding errors are relative to; each weight once."""
    made: dict[int, Truth] = {}
    for weight in weights.values():
        if id(weight) not in made:
            made[id(weight)] = Truth(x @ weight.T, np.abs(x) @ np.abs(weight).T)
    return {name: made[id(weight)] for name, weight in weights.items()}


def _main_ratio(ratios: list[int]) -> int:
    return MAIN_RATIO if MAIN_RATIO in ratios else ratios[0]
