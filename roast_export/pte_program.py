"""A .pte as data: what its one method computes, and parts of it cut out as programs of their own.

ExecuTorch plans memory ahead: a value is a place in a buffer, and a reshaped value is another value at the
same place. So what a value depends on is followed through places, not through numbers of values.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import library

from roast_export.arrays import BFLOAT16
from roast_export.errors import RoastError
from roast_export.note import LARGEST_NOTE, NOTE
from roast_export.size import SMALL_TENSOR

Place = tuple[int, int, int]
"""Buffer, first byte, end; the buffer is -1 for what has none."""

PACKED_NOTE = f"{NOTE}.z"
DELEGATE = "delegate"
LENGTH = "aten::sym_size.int"
"""What reads a length of a tensor, and none of its elements. Before it is written, that is the longest."""
_DTYPES: dict[int, str | np.dtype[Any]] = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64",
    5: "float16", 6: "float32", 7: "float64", 11: "bool", 15: BFLOAT16}  # fmt: skip
"""executorch's numbers of element types, of those that numpy has."""


_OUT = {
    "gather": "(Tensor memory, int[] mapping, float scale, *, Tensor(a!) out) -> Tensor(a!)",
    "embedding": "(Tensor memory, Tensor ids, int[] mapping, float scale, *, Tensor(a!) out) -> Tensor(a!)",
    "linear": "(Tensor x, Tensor memory, Tensor? bias, int[] mapping, float scale, *, Tensor(a!) out) "
    "-> Tensor(a!)",
}
"""ExecuTorch runs the forms that write into an output that it planned."""

_REGISTERED: list[library.Library] = []


@dataclass(frozen=True)
class Call:
    """One instruction: an operator and the numbers of the values that it takes and writes."""

    operator: str
    """"aten::mul.out", or DELEGATE."""
    args: tuple[int, ...]
    reads: frozenset[int]
    writes: frozenset[int]


@dataclass
class PteProgram:
    """The program in a file, as executorch's own reader gives it (executorch.exir.schema)."""

    file: Any

    @property
    def plan(self) -> Any:
        return self.file.program.execution_plan[0]

    @cached_property
    def values(self) -> list[Any]:
        return [value.val for value in self.plan.values]

    @cached_property
    def calls(self) -> list[Call]:
        """Every instruction in order. Raises RoastError if the method has branches."""
        seen = {*self.plan.inputs, *(v for v in range(len(self.values)) if self.is_stored(v))}
        found = []
        for instruction in self.plan.chains[0].instructions:
            found.append(self._call(instruction.instr_args, seen))
            seen |= found[-1].reads | found[-1].writes
        return found

    def note(self) -> bytes | None:
        """What `with_note` put into the file. Raises RoastError if it is damaged."""
        named = self.file.named_data
        entry = named and named.pte_data.get(PACKED_NOTE)
        if not entry:
            return None
        try:
            stream = zlib.decompressobj()
            text = stream.decompress(bytes(named.buffers[entry.buffer_index]), LARGEST_NOTE)
        except zlib.error as error:
            raise RoastError(f"its {NOTE} is damaged ({error})") from error
        return text

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors in the file, those of delegates included, small ones left out."""
        stored = [len(buffer.storage) for buffer in self.file.program.constant_buffer]
        named = self.file.named_data
        if named is not None:
            note = named.pte_data.get(PACKED_NOTE)
            own = None if note is None else note.buffer_index
            stored += [len(buffer) for k, buffer in enumerate(named.buffers) if k != own]
        return sum(size for size in stored if size > SMALL_TENSOR)

    def is_stored(self, value: int) -> bool:
        """Whether a value is a tensor in the file."""
        tensor = self.values[value]
        return _is_tensor(tensor) and tensor.data_buffer_idx > 0 and tensor.allocation_info is None

    def stored(self, value: int) -> NDArray[Any]:
        """A tensor in the file."""
        tensor = self.values[value]
        data = self.file.program.constant_buffer[tensor.data_buffer_idx].storage
        dtype = np.dtype(_DTYPES[int(tensor.scalar_type)])
        if min(tensor.sizes, default=0) < 0:
            raise ValueError(f"a tensor of {list(tensor.sizes)}")
        count = math.prod(tensor.sizes)
        return np.frombuffer(bytes(data), dtype, count).reshape(tensor.sizes)

    def named(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Stored tensors that have a name in the file."""
        for k, value in enumerate(self.values):
            extra = getattr(value, "extra_tensor_info", None)
            if extra is not None and extra.fully_qualified_name and self.is_stored(k):
                yield extra.fully_qualified_name, self.stored(k)

    def shape(self, value: int) -> list[int]:
        return list(self.values[value].sizes)

    def dtype(self, value: int) -> np.dtype[Any]:
        return np.dtype(_DTYPES[int(self.values[value].scalar_type)])

    def ints(self, value: int) -> list[int]:
        """A list of integers, each of which is a value."""
        values = self.values
        return [int(values[item].int_val) for item in values[value].items]

    def double(self, value: int) -> float:
        return float(self.values[value].double_val)

    def sources(self, targets: Iterable[int], given: Iterable[int] = ()) -> set[int]:
        """Stored tensors and inputs that the targets depend on, other than through `given`."""
        return self._slice(list(targets), frozenset(given))[1]

    def cut(self, target: int, given: Sequence[int] = ()) -> bytes:
        """A .pte with the instructions behind one value: from the values `given` to it, from nothing else.

        Raises:
            RoastError: the value depends on other inputs, or a delegate computes it.
        """
        kept, sources = self._slice([target], frozenset(given))
        foreign = [v for v in sources if not self.is_stored(v) and v not in given]
        if any(self.calls[k].operator == DELEGATE for k in kept):
            raise RoastError("the weight is made in a delegate")
        if foreign:
            raise RoastError("the weight depends on an input of the model")
        plan = self.plan
        chain = replace(
            plan.chains[0], instructions=[plan.chains[0].instructions[k] for k in kept], stacktrace=None
        )
        return self.rebuilt(replace(plan, chains=[chain], inputs=list(given), outputs=[target], delegates=[]))

    def rebuilt(self, plan: Any) -> bytes:
        """A .pte of another plan over the tensors of this file."""
        program = replace(
            self.file.program, execution_plan=[plan], backend_delegate_data=[], named_data=[], segments=[]
        )
        return written(replace(self.file, program=program, named_data=None))

    def _slice(self, targets: list[int], given: frozenset[int]) -> tuple[list[int], set[int]]:
        """Numbers of the instructions that the targets need, and the stored tensors and inputs they read."""
        needed = {self._place(target) for target in targets}
        sources = {target for target in targets if self.is_stored(target)}
        kept: list[int] = []
        for k in range(self._last_write(targets), -1, -1):
            call = self.calls[k]
            written_places = [self._place(value) for value in call.writes]
            if not any(_overlap(place, want) for place in written_places for want in needed):
                continue
            needed = {want for want in needed if not any(_covers(place, want) for place in written_places)}
            if not given.isdisjoint(call.writes):
                continue
            kept.append(k)
            sources |= {value for value in call.reads if self.is_stored(value)}
            needed |= {
                self._place(v) for v in call.reads if _is_data(self.values[v]) and not self.is_stored(v)
            }
        for value in [*self.plan.inputs, *given]:
            if any(_overlap(self._place(value), want) for want in needed):
                sources.add(value)
        return kept[::-1], sources

    def _last_write(self, targets: list[int]) -> int:
        """The last instruction that writes one of the targets; behind it their place may serve others."""
        writers = [k for k, call in enumerate(self.calls) if not call.writes.isdisjoint(targets)]
        return max(writers, default=-1)

    def _place(self, value: int) -> Place:
        tensor = self.values[value]
        where = getattr(tensor, "allocation_info", None)
        if where is None:
            return -1, value, value + 1
        begin = where.memory_offset
        size = math.prod(tensor.sizes) * np.dtype(_DTYPES[int(tensor.scalar_type)]).itemsize
        return where.memory_id, begin, begin + size

    def _call(self, call: Any, seen: set[int]) -> Call:
        kind = type(call).__name__
        if kind == "DelegateCall":
            # Its results are values that nothing has touched before: files with delegates have no views.
            fresh = frozenset(value for value in call.args if value not in seen)
            return Call(DELEGATE, tuple(call.args), frozenset(call.args) - fresh, fresh)
        if kind != "KernelCall":
            raise RoastError("the program has branches, which this version does not follow")
        operator = self.plan.operators[call.op_index]
        name = f"{operator.name}.{operator.overload or 'default'}"
        written_args = {call.args[k] for k in _written(operator.name, operator.overload or "default")}
        writes = frozenset(self._leaves(written_args))
        reads = frozenset() if name == LENGTH else frozenset(self._leaves(call.args)) - writes
        return Call(name, tuple(call.args), reads, writes)

    def _leaves(self, args: Iterable[int]) -> Iterator[int]:
        """The values of lists of tensors and of lengths, and all others as they are."""
        for arg in args:
            items = self.values[arg]
            if type(items).__name__ in ("TensorList", "OptionalTensorList", "IntList"):
                yield from (item for item in items.items if item >= 0)
            else:
                yield arg


def read_program(path: Path) -> PteProgram:
    """The program of a file. Raises RoastError if executorch is missing, or cannot read it."""
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise RoastError(
            f"looking into a .pte needs the package executorch ({error}); run `pip install executorch==1.5.1`"
        ) from error
    register_out_forms()
    try:
        found = PteProgram(deserialize_pte_binary(path.read_bytes()))
        methods = [plan.name for plan in found.file.program.execution_plan]
    except Exception as error:
        raise RoastError(f"{path} is damaged or of another version ({error}); export it again") from error
    if methods != ["forward"]:
        raise RoastError(f"{path} has the methods {', '.join(methods)}; files of ours have `forward` only")
    return found


def written(file: Any) -> bytes:
    """The bytes of a program."""
    from executorch.exir._serialize._program import serialize_pte_binary

    return bytes(serialize_pte_binary(file, extract_delegate_segments=True))


def with_note(file: Any, text: str) -> Any:
    """The program with a note, as named data: runtimes do not load what no delegate asks for."""
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize.data_serializer import DataEntry

    named = file.named_data or NamedDataStoreOutput([], {}, {})
    buffers = [*named.buffers, zlib.compress(text.encode(), 9)]
    entries = {**named.pte_data, PACKED_NOTE: DataEntry(len(buffers) - 1, 1, None)}
    return replace(file, named_data=NamedDataStoreOutput(buffers, entries, {}))


def register_out_forms() -> None:
    """Make torch know what ExecuTorch calls of our operators; once is enough."""
    if _REGISTERED:
        return
    ours = library.Library("roast", "FRAGMENT")
    for name, schema in _OUT.items():
        ours.define(f"{name}.out{schema}")
        # Only its presence is asked for when a program is lowered.
        ours.impl(f"{name}.out", _never, "CompositeExplicitAutograd")
    _REGISTERED.append(ours)


def _never(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("this form runs in ExecuTorch only")


@lru_cache(maxsize=1024)
def _written(name: str, overload: str) -> tuple[int, ...]:
    """Which arguments of an operator it writes."""
    namespace, _, rest = name.partition("::")
    if namespace == "executorch_prim":
        return (-1,)
    try:
        operator = getattr(getattr(getattr(torch.ops, namespace), rest), overload)
    except AttributeError:
        raise RoastError(f"the operator {name}.{overload} is not known here") from None
    arguments = operator._schema.arguments
    found = tuple(k for k, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)
    # A number that an operator returns, such as a length, is written to a value after the arguments.
    return found or (-1,)


def _is_tensor(value: Any) -> bool:
    return type(value).__name__ == "Tensor"


def _is_data(value: Any) -> bool:
    """Whether a value may be computed: a tensor, or a number that stands for a length."""
    return type(value).__name__ in ("Tensor", "Int", "Bool", "Double")


def _overlap(a: Place, b: Place) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _covers(a: Place, b: Place) -> bool:
    return a[0] == b[0] and a[1] <= b[1] and b[2] <= a[2]
