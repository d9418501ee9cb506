"""What a model keeps between calls: put back as it was after an export, or refused by name.

A forward may write into buffers (a cache, a running mean), into tensors and numbers that are plain
attributes, and into lists. A trace keeps none of that, so what an output depends on must be known.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roast_export.calls import original

MAX_ITEMS = 4096
"""Containers with more items than this (vocabularies) are held as they are, without what is in them."""

_MISSING = object()


class Snapshot:
    """Attributes of all modules of a model, with copies of the tensors and containers among them.

    Parameters that need a gradient are held by identity alone: a forward that writes into one is a training
    step. Objects that are no modules are held with what they hold.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held: list[tuple[str, Any, Any]] = []
        self._versions: dict[int, int] = {}
        self._seen: set[int] = set()
        for name, module in original(model).named_modules():
            self._hold(name, vars(module))

    def _hold(self, path: str, value: Any) -> None:
        if id(value) in self._seen or (isinstance(value, nn.Parameter) and value.requires_grad):
            return
        if isinstance(value, Tensor):
            if value.layout is torch.strided and value.device.type != "meta":
                self._seen.add(id(value))
                self._versions[id(value)] = _version(value)
                copy = value.detach().clone(memory_format=torch.contiguous_format)
                self._held.append((path, value, copy))
        elif isinstance(value, dict | list | set | deque):
            self._seen.add(id(value))
            self._held.append((path, value, value.copy()))
            if len(value) <= MAX_ITEMS:
                items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
                for key, item in items:
                    self._hold(_join(path, key), item)
        elif isinstance(value, np.ndarray):
            self._seen.add(id(value))
            self._held.append((path, value, value.copy()))
        elif _is_object(value):
            self._hold(path, vars(value))

    def restore(self) -> None:
        """Put back what has changed."""
        for _, value, content in self._held:
            if isinstance(value, Tensor):
                # Not every operator that writes says so: batch_norm writes into running_mean all the same.
                if not same(value, content):
                    with torch.inference_mode(value.is_inference()), torch.no_grad():
                        value.copy_(content)
                self._versions[id(value)] = _version(value)
            elif isinstance(value, np.ndarray):
                np.copyto(value, content)
            elif isinstance(value, dict):
                for key in [key for key in value if key not in content]:
                    del value[key]
                value.update({k: v for k, v in content.items() if value.get(k, _MISSING) is not v})
            elif not _same_items(value, content):
                value.clear()
                value.update(content) if isinstance(value, set) else value.extend(content)

    def changed(self) -> list[str]:
        """Dotted names of the buffers and attributes whose values are other than they were."""
        copies = {id(value): content for _, value, content in self._held if isinstance(value, Tensor)}
        found: dict[str, None] = {}
        for path, value, content in self._held:
            if isinstance(value, Tensor):
                if not same(value, content):
                    found[path] = None
            elif isinstance(value, dict):
                for key in [*content, *(key for key in value if key not in content)]:
                    before, now = content.get(key, _MISSING), value.get(key, _MISSING)
                    if before is not now and not same(copies.get(id(before), before), now):
                        found[_join(path, key)] = None
            elif not _same_items(value, content):
                found[path] = None
        return list(found)

    def written(self) -> list[str]:
        """Dotted names of what was written into, also where the values are the same as before."""
        found: dict[str, None] = {}
        for path, value, content in self._held:
            if isinstance(value, Tensor):
                if _version(value) != self._versions[id(value)] or not same(value, content):
                    found[path] = None
            elif isinstance(value, dict):
                for key in [*content, *(key for key in value if key not in content)]:
                    before, now = content.get(key, _MISSING), value.get(key, _MISSING)
                    both = isinstance(before, Tensor) or isinstance(now, Tensor)
                    if before is not now and (both or not same(before, now)):
                        found[_join(path, key)] = None
            elif not _same_items(value, content):
                found[path] = None
        return list(found)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The model's state is as it was when this ends, whatever ran in between."""
    snapshot = Snapshot(model)
    try:
        yield
    finally:
        snapshot.restore()


def written_buffers(model: nn.Module, changed: list[str], program: Any) -> list[str]:
    """Buffers among the changed names from whose former value an output can follow.

    A buffer that is written and never read (a counter of calls) does not reach any output.
    """
    buffers = dict(model.named_buffers(remove_duplicate=False))
    names = [name for name in changed if name in buffers]
    if not isinstance(program, ExportedProgram):
        return names
    # A trace knows a buffer that two modules share by one of its names.
    alike = {name: [other for other, value in buffers.items() if value is buffers[name]] for name in names}
    return [name for name in names if any(_is_read(program, other) for other in alike[name])]


def _is_read(program: ExportedProgram, buffer: str) -> bool:
    """Whether values can flow from a buffer's placeholder to an output of the graph."""
    signature = program.graph_signature
    placeholder = {name: node for node, name in signature.inputs_to_buffers.items()}.get(buffer)
    start = next((node for node in program.graph.nodes if node.name == placeholder), None)
    if start is None:
        return False
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    first = min(start.users, key=order.__getitem__, default=None)
    if first is not None and first.target is torch.ops.aten.copy_.default and first.args[0] is start:
        return start in first.all_input_nodes[1:]
    stores = {spec.arg.name for spec in signature.output_specs if spec.kind.name != "USER_OUTPUT"}
    seen, pending = {start}, [start]
    while pending:
        node = pending.pop()
        for user in node.users:
            if _only_updates(user, node):
                continue
            if user.op == "output" and node.name in stores:
                continue
            if user.op == "output" or any(target not in seen for target in _written_by(user)):
                return True
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _only_updates(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    """Whether an operator writes into a tensor and computes nothing else with it.

    That is what batch normalisation by the statistics of the batch does with the running ones.
    """
    return (
        user.target is torch.ops.aten.batch_norm.default and user.args[5] is True and node in user.args[3:5]
    )


def _written_by(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Tensors into which an operator writes."""
    schema = getattr(node.target, "_schema", None)
    return [
        value
        for argument, value in zip(schema.arguments if schema else (), node.args, strict=False)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and isinstance(value, torch.fx.Node)
    ]


def _version(value: Tensor) -> int:
    """How often a tensor was written into, as far as torch counts it."""
    return 0 if value.is_inference() else value._version


def _join(path: str, key: Any) -> str:
    if key is None or key in ("_buffers", "_parameters", "_modules"):
        return path
    return f"{path}.{key}" if path else str(key)


def _is_object(value: Any) -> bool:
    """Whether this is an object of a user's class that may keep something, such as a cache."""
    home = type(value).__module__.partition(".")[0]
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, nn.Module | type | ModuleType)
        and not callable(value)
        and home not in ("torch", "builtins", "roast_export", *sys.stdlib_module_names)
    )


def _same_items(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, set):
        return bool(a == b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; of tensors also shape and dtype, and NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return (
            bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())
            if a.is_floating_point()
            else torch.equal(a, b)
        )
    try:
        return bool(a == b)
    except (RuntimeError, ValueError, TypeError):
        return False
