"""The three steps of one row, each in a process of its own: prepare, the command line, compare.

The command runs in a process that has never seen the model's code, as a user's shell would start it.
Each step leaves a JSON file in the row's folder; a step that leaves none has crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.zoo.compare import all_differences, bounds, call, leaves

SUFFIX = {"onnx": "model.onnx", "ort": "model.ort", "torchscript": "model.ts", "pt2": "model.pt2"}
ARCHIVE = "archive.pt"
CASE = "case{}.pt"
BLIND = 10.0
"""Other values must move an output by so many bounds, or the comparison could not fail."""


def prepare(name: str, folder: str) -> dict[str, Any]:
    """Build, compress, compute what is right with the module, save. The module is the truth."""
    from tests.zoo.architecture import Draw, architectures

    entry = architectures()[name]
    import roast_export

    torch.manual_seed(0)
    dense = entry.build().eval()
    model = roast_export.compress(dense, entry.ratio, min_params=entry.min_params).eval()
    cases, ranges = [], []
    for k, size in enumerate([*entry.sizes, entry.sizes[0]]):
        inputs = entry.inputs(Draw(k), *size)
        outputs = call(model, inputs)
        cases.append((inputs, outputs))
        ranges.append(bounds(model, inputs, outputs))
        torch.save({"inputs": inputs, "outputs": outputs, "bounds": ranges[-1]}, Path(folder, CASE.format(k)))
    blind = _blind(cases[0][1], cases[-1][1], ranges[0])
    total, kept = (sum(p.numel() for p in each.parameters()) for each in (dense, model))
    facts = {"parameters": total, "kept": kept, "blind": blind}
    Path(folder, "facts.json").write_text(json.dumps(facts))
    roast_export.save(model, Path(folder, ARCHIVE), entry.inputs(Draw(0), *entry.sizes[0]), **entry.save)
    return facts


def _blind(first: list[torch.Tensor], other: list[torch.Tensor], allowed: list[float]) -> bool:
    """Whether other inputs leave every output within the bound: such a comparison proves nothing."""
    moved = [
        float((a.double() - b.double()).abs().nan_to_num().max()) > BLIND * bound
        for a, b, bound in zip(first, other, allowed, strict=True)
        if a.numel() and a.shape == b.shape
    ]
    return not any(moved)


def command(form: str, flags: list[str], folder: str) -> dict[str, Any]:
    """`roast-export archive.pt --to FORM -o FILE`, by the function that the script of that name calls."""
    from roast_export.cli import export_command

    sys.argv = ["roast-export", ARCHIVE, "--to", form, "-o", SUFFIX[form], *flags]
    os.chdir(folder)
    try:
        export_command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return {"exit": code, "file": Path(SUFFIX[form]).is_file()}


def compare(form: str, cases: int, folder: str) -> dict[str, Any]:
    """Run the file on every case, in every way to run it, and say what differs.

    held: different shapes of the inputs that the file takes.
    """
    os.chdir(folder)
    fixed, wrong, held = [], [], set()
    runs, lengths = RUNS[form](), LENGTHS[form]()
    for k in range(cases):
        case = torch.load(CASE.format(k), weights_only=False)
        given = leaves(list(case["inputs"].values()) if isinstance(case["inputs"], dict) else case["inputs"])
        names = list(case["inputs"]) if isinstance(case["inputs"], dict) else []
        misfit = _misfit(lengths, given, names)
        if misfit:
            fixed.append(f"case {k}: {misfit}")
            continue
        held.add(tuple(tuple(tensor.shape) for tensor in given))
        expected = [value.numpy() for value in case["outputs"]]
        for way, run in runs.items():
            try:
                actual = run(given, names, case["inputs"])
            except Exception as error:
                wrong.append(f"{way}, case {k}: does not run: {_line(error)}")
                continue
            wrong += [
                f"{way}, case {k}: {text}" for text in all_differences(expected, actual, case["bounds"])
            ]
    return {"held": len(held), "fixed": fixed, "wrong": wrong}


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


Lengths = dict[str, list[Any]]
"""Lengths of each input of a file: a number where the file fixes it."""


def _misfit(lengths: Lengths, given: list[torch.Tensor], names: list[str]) -> str | None:
    """Which inputs have a length that the file fixes otherwise, or None."""
    found = [
        f"{name}:{axis} is fixed at {length}"
        for name, tensor in _ordered(list(lengths), given, names).items()
        for axis, length in enumerate(lengths[name])
        if isinstance(length, int) and length != tensor.shape[axis]
    ]
    return ", ".join(found) or None


def _lengths_of_session(file: str) -> Lengths:
    import roast_export

    return {value.name: value.shape for value in roast_export.create_session(file).get_inputs()}


def _lengths_of_archive(file: str) -> Lengths:
    """As the exported program states them; a TorchScript file states none, so its archive speaks for it."""
    import roast_export  # noqa: F401 - registers the operators that the file names

    program = torch.export.load(file)
    wanted = set(program.graph_signature.user_inputs)
    return {
        node.name: [n if isinstance(n, int) else str(n) for n in node.meta["val"].shape]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    }


def _ordered(wanted: list[str], given: list[torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors by the file's names for them: by name where all names are known, else by position."""
    if len(wanted) != len(given):
        raise ValueError(f"the file takes {len(wanted)} inputs, forward {len(given)}")
    if sorted(wanted) == sorted(names):
        by_name = dict(zip(names, given, strict=True))
        return {name: by_name[name] for name in wanted}
    return dict(zip(wanted, given, strict=True))


Run = Callable[[list[torch.Tensor], list[str], Any], list[Any]]


def _sessions(file: str, ways: dict[str, Callable[[str], Any]]) -> dict[str, Run]:
    def runner(session: Any) -> Run:
        wanted = [value.name for value in session.get_inputs()]

        def run(given: list[torch.Tensor], names: list[str], inputs: Any) -> list[Any]:
            feeds = {key: value.numpy() for key, value in _ordered(wanted, given, names).items()}
            return list(session.run(None, feeds))

        return run

    return {way: runner(opener(file)) for way, opener in ways.items()}


def _onnx() -> dict[str, Run]:
    import onnxruntime

    import roast_export

    def stock(file: str) -> Any:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    return _sessions(SUFFIX["onnx"], {"stock": stock, "native": roast_export.create_session})


def _ort() -> dict[str, Run]:
    import roast_export

    return _sessions(SUFFIX["ort"], {"native": roast_export.create_session})


def _arrays(result: Any) -> list[Any]:
    return [np.asarray(leaf.detach()) for leaf in leaves(result)]


def _torchscript() -> dict[str, Run]:
    import roast_export  # noqa: F401 - registers the operators that the file names

    module = torch.jit.load(SUFFIX["torchscript"])

    def run(given: list[torch.Tensor], names: list[str], inputs: Any) -> list[Any]:
        wanted = [value.debugName() for value in module.forward.graph.inputs()][1:]
        return _arrays(module(*_ordered(wanted, given, names).values()))

    return {"torchscript": run}


def _pt2() -> dict[str, Run]:
    import roast_export  # noqa: F401 - registers the operators that the file names

    module = torch.export.load(SUFFIX["pt2"]).module()

    def run(given: list[torch.Tensor], names: list[str], inputs: Any) -> list[Any]:
        return _arrays(module(**inputs) if isinstance(inputs, dict) else module(*inputs))

    return {"pt2": run}


RUNS: dict[str, Callable[[], dict[str, Run]]] = {
    "onnx": _onnx,
    "ort": _ort,
    "torchscript": _torchscript,
    "pt2": _pt2,
}


LENGTHS: dict[str, Callable[[], Lengths]] = {
    "onnx": lambda: _lengths_of_session(SUFFIX["onnx"]),
    "ort": lambda: _lengths_of_session(SUFFIX["ort"]),
    "torchscript": lambda: _lengths_of_archive(ARCHIVE),
    "pt2": lambda: _lengths_of_archive(SUFFIX["pt2"]),
}


def child(step: str, arguments: list[Any], folder: str) -> None:
    """Runs one step in this process: its output and its result go into files of the folder."""
    torch.set_num_threads(1)
    name = "-".join([step, *(a for a in arguments[:1] if step != "prepare")])
    for descriptor, stream in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(folder, f"{name}.{stream}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    steps = {"prepare": prepare, "command": command, "compare": compare}
    try:
        result = steps[step](*arguments, folder)
    except Exception as error:
        traceback.print_exc()
        known = {base.__name__ for base in type(error).__mro__}
        result = {"error": str(error), "refused": "RoastError" in known, "type": type(error).__name__}
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    Path(folder, f"{name}.json").write_text(json.dumps(result))
