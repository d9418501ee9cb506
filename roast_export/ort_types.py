"""Names of types in a .ort, so that minimal builds find the kernels of `ai.roast`.

A kernel states which types each of its inputs may have, under a name for the input; a .ort says which
input a name means. For an input of any type, as our arrays are, onnxruntime's full builds name the input,
"Input0", and its minimal builds count such inputs: "T0". A full build writes its own names only, and a
minimal build then refuses the file: both must stand in it.
"""

from __future__ import annotations

import importlib
import struct
from typing import Any

from roast_export import onnx_ops

MINIMAL_NAME = "T0"
"""Of the one input of any type that each operator of ours has: its array."""


def with_minimal_names(content: bytes) -> bytes:
    """The .ort file `content` with MINIMAL_NAME for the array of every operator of `ai.roast`.

    A flatbuffer's references point forward, so new lists of names stand at the end and the old are unused.
    """
    from onnxruntime.tools import ort_format_model  # noqa: F401  its import makes the next one possible

    session = importlib.import_module("ort_flatbuffers_py.fbs.InferenceSession").InferenceSession
    resolver = session.GetRootAs(content, 0).KernelTypeStrResolver()
    changed = bytearray(content)
    for k in range(resolver.OpKernelTypeStrArgsLength()):
        entry = resolver.OpKernelTypeStrArgs(k)
        domain, _, rest = entry.OpId().decode().partition(":")
        names = _names(entry)
        if domain == onnx_ops.DOMAIN and MINIMAL_NAME not in names:
            array = 1 if rest.partition(":")[0] in onnx_ops.LINEARS else 0
            changed += bytes(-len(changed) % 8)
            field = entry._tab.Pos + entry._tab.Offset(6)
            chunk = _list({**names, MINIMAL_NAME: [(0, array)]})
            start = len(changed) + struct.unpack_from("<I", chunk)[0]
            struct.pack_into("<I", changed, field, start - field)
            changed += chunk
    return bytes(changed)


def _names(entry: Any) -> dict[str, list[tuple[int, int]]]:
    """Name: inputs (0) and outputs (1) that it means, with their numbers."""
    found = {}
    for k in range(entry.KernelTypeStrArgsLength()):
        named = entry.KernelTypeStrArgs(k)
        arguments = [named.Args(j) for j in range(named.ArgsLength())]
        found[named.KernelTypeStr().decode()] = [(a.ArgType(), a.Index()) for a in arguments]
    return found


def _list(names: dict[str, list[tuple[int, int]]]) -> bytes:
    """A flatbuffer whose root is the list of names, in their order."""
    import flatbuffers

    builder = flatbuffers.Builder()

    def vector(tables: list[int]) -> int:
        builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())

    def argument(kind: int, number: int) -> int:
        builder.StartObject(2)
        builder.PrependInt8Slot(0, kind, 0)
        builder.PrependUint32Slot(1, number, 0)
        return int(builder.EndObject())

    def named(name: str) -> int:
        text, arguments = builder.CreateString(name), vector([argument(*a) for a in names[name]])
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, text, 0)
        builder.PrependUOffsetTRelativeSlot(1, arguments, 0)
        return int(builder.EndObject())

    builder.Finish(vector([named(name) for name in sorted(names)]))
    return bytes(builder.Output())
