"""Layers whose weights are virtual: read out of a shared array, never stored.

Every virtual parameter is a `VirtualWeight` in the container `virtual` of its module, and the
module's attribute of the old name reads it. The same form serves nn.Linear and an LSTM's
weight_hh_l1_reverse; linear, convolution and embedding layers have a class of their own, because
they do better than expanding the weight or because people want to build them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from roast_export import torch_mapping, torch_ops
from roast_export.errors import InputError, MappingError
from roast_export.mapping import Mapping, check_scale

NARROW = (torch.float16, torch.bfloat16)
"""Dtypes of models whose weights are rounded after the mapping gave them in float32."""


@dataclass(frozen=True)
class Fit:
    """How far a virtual weight is from the dense weight that it was made from (fit.py)."""

    error: float
    """|W - target| / |target|."""
    array: int
    """Checksum of the array for which this holds: training changes it."""


class VirtualWeight(nn.Module):
    """One virtual weight: the shared array, the record and the scale (docs/mapping.md section 1).

    memory: Parameter float[n_memory], the same object in every layer that shares it.
    dtype: of the weight that the layer computes with: float16 or bfloat16 where the model is so, else
        None, and the weight is float32 (float64 for a float64 array). The mapping gives float32; a
        narrower weight is that, rounded.
    """

    memory: nn.Parameter
    fit: Fit | None = None
    dtype: torch.dtype | None = None

    def __init__(
        self, memory: nn.Parameter, mapping: Mapping, scale: float = 1.0, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.dtype = dtype if dtype in NARROW else None
        if memory.shape != (mapping.n_memory,):
            raise MappingError(
                f"the array has shape {list(memory.shape)}, the mapping needs [{mapping.n_memory}]"
            )
        self.memory = memory
        self._adopt(mapping.to_list(), scale)

    def _adopt(self, fields: list[int], scale: float) -> None:
        self.mapping = Mapping.from_list(fields)
        self.fields = fields
        self.scale = check_scale(scale)
        self.scale_text = repr(self.scale)

    def _constant_scale(self) -> float:
        """The scale. torch compiles numbers that differ between modules as variables, and text never."""
        return float(self.scale_text) if torch.compiler.is_dynamo_compiling() else self.scale

    def forward(self) -> Tensor:
        """The weight: float32[shape], or as `dtype` says."""
        return self._narrow(torch_ops.gather(self.memory, self.fields, self._constant_scale()))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of a two-dimensional weight: float32[ids.shape..., dim], or as `dtype` says.

        Nothing else is expanded.
        """
        return self._narrow(torch_ops.embedding(self.memory, ids, self.fields, self._constant_scale()))

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ W^T + bias: float32[..., in] to float32[..., out]. The weight is not expanded.

        A narrow layer takes and gives float16 or bfloat16: it multiplies in float32 with the weight as the
        mapping gives it, and rounds once, at the end.
        """
        if self.dtype is not None:
            x, bias = x.float(), None if bias is None else bias.float()
        return self._narrow(torch_ops.linear(x, self.memory, bias, self.fields, self._constant_scale()))

    def _narrow(self, values: Tensor) -> Tensor:
        return values if self.dtype is None else values.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VirtualWeight:
        """Move or convert, as nn.Module does for half() or to(): what is converted is the weight.

        The array follows, except to bfloat16, which no runtime reads: then it keeps its dtype.
        """
        now = self.dtype or torch_mapping.compute_dtype(self.memory)
        then = fn(torch.empty(0, dtype=now, device=self.memory.device)).dtype

        def of_array(values: Tensor) -> Tensor:
            converted = fn(values)
            return values.to(converted.device) if converted.dtype == torch.bfloat16 else converted

        super()._apply(of_array, recurse)  # type: ignore[no-untyped-call]
        self.dtype = then if then in NARROW else None
        return self

    def get_extra_state(self) -> Tensor:
        """Scale and record in one tensor: int64[1 + fields]; first the bits of the scale as float64.

        A tensor, because safetensors, and what saves through it, takes nothing else.
        """
        bits = torch.tensor([self.scale], dtype=torch.float64).view(torch.int64)
        return torch.cat([bits, torch.tensor(self.fields)])

    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        fields, scale = read_extra_state(state)
        shape, n_memory = self.mapping.shape, self.mapping.n_memory
        mapping = Mapping.from_list(fields)
        if mapping.shape != shape or mapping.n_memory != n_memory:
            raise InputError(
                f"the state dict maps a weight of shape {list(mapping.shape)} into {mapping.n_memory} "
                f"slots, this model has {list(shape)} in {n_memory}; build it with the same ratio"
            )
        self._adopt(mapping.to_list(), scale)

    def extra_repr(self) -> str:
        return f"{list(self.mapping.shape)} from {self.mapping.n_memory} slots"


def read_extra_state(state: Tensor | dict[str, Any]) -> tuple[list[int], float]:
    """Record and scale out of an entry `_extra_state`; earlier files hold a dict there."""
    if isinstance(state, dict):
        return list(state["mapping"]), float(state["scale"])
    if state.dtype != torch.int64 or state.dim() != 1 or len(state) < 2:
        raise MappingError(f"a record is int64[n], the state dict has {state.dtype} {list(state.shape)}")
    scale = state[:1].cpu().clone().view(torch.float64)
    return [int(field) for field in state[1:].tolist()], float(scale)


class _Values(Tensor):
    """A virtual weight as other code reads it: a tensor whose `data` cannot be replaced.

    Adapters are merged by `layer.weight.data += delta`, which on a fresh tensor would do nothing and say so
    nowhere.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, values: Tensor) -> None:
        raise InputError(
            "a virtual weight is read out of the shared array: it cannot be set, nor an adapter merged "
            "into it; merge into the dense model, then compress that"
        )


class _Weights(nn.Module):
    """Virtual weights by the names of the parameters they replace.

    nn.ModuleDict would refuse the names of its own methods, and users call parameters keys and values.
    """

    def __init__(self, weights: dict[str, VirtualWeight]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.add_module(name, weight)

    def __getitem__(self, name: str) -> VirtualWeight:
        return cast(VirtualWeight, self._modules[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)


class _Virtual(nn.Module):
    """What every module with virtual parameters has; `virtual[name]()` is the parameter `name`."""

    virtual: _Weights

    def _read(self, name: str) -> Tensor:
        """The weight, expanded once in each call of this module however often it is looked at."""
        seen: dict[str, Tensor] | None = self.__dict__.get("_seen")
        if torch.compiler.is_dynamo_compiling():
            return cast(Tensor, self.virtual[name]())
        if seen is None:
            values: Tensor = self.virtual[name]()
            traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
            return values if traced or type(values) is not Tensor else values.as_subclass(_Values)
        if name not in seen:
            seen[name] = self.virtual[name]()
        return seen[name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            # The branches of torch.cond must not change anything outside; equal reads become one anyway.
            return super().__call__(*args, **kwargs)
        self.__dict__["_seen"] = {}
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.__dict__.pop("_seen", None)

    def __reduce__(self) -> tuple[Any, ...]:
        base, names = type(self).__dict__["_origin"]
        return _rebuild, (base, names), self.__dict__


def _reader(name: str) -> property:
    return property(lambda self: self._read(name))


class RoastLinear(_Virtual, nn.Linear):
    """nn.Linear with a virtual weight float32[out_features, in_features]."""

    _origin = (nn.Linear, ("weight",))
    weight = _reader("weight")

    def __init__(self, weight: VirtualWeight, bias: bool = True) -> None:
        out_features, in_features = weight.mapping.shape
        _initialise(self, nn.Linear, {"weight": weight}, in_features, out_features, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, which users pass
        return self.virtual["weight"].linear(input, self.bias)


class RoastConv1d(_Virtual, nn.Conv1d):
    """nn.Conv1d with a virtual weight float32[out, in / groups, k]; options as nn.Conv1d."""

    _origin = (nn.Conv1d, ("weight",))
    weight = _reader("weight")

    def __init__(self, weight: VirtualWeight, **options: Any) -> None:
        out, per_group, kernel = weight.mapping.shape
        channels = per_group * options.get("groups", 1)
        _initialise(self, nn.Conv1d, {"weight": weight}, channels, out, kernel, **options)


class RoastConv2d(_Virtual, nn.Conv2d):
    """nn.Conv2d with a virtual weight float32[out, in / groups, kh, kw]; options as nn.Conv2d."""

    _origin = (nn.Conv2d, ("weight",))
    weight = _reader("weight")

    def __init__(self, weight: VirtualWeight, **options: Any) -> None:
        out, per_group, *kernel = weight.mapping.shape
        channels = per_group * options.get("groups", 1)
        _initialise(self, nn.Conv2d, {"weight": weight}, channels, out, tuple(kernel), **options)


class RoastEmbedding(_Virtual, nn.Embedding):
    """nn.Embedding with a virtual table float32[num_embeddings, dim]; only the rows asked for are read.

    The row padding_idx reads as zeros (nn.Embedding starts it at zero and never trains it).
    """

    _origin = (nn.Embedding, ("weight",))
    weight = _reader("weight")

    def __init__(self, weight: VirtualWeight, padding_idx: int | None = None) -> None:
        _initialise(self, nn.Embedding, {"weight": weight}, *weight.mapping.shape, padding_idx=padding_idx)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, which users pass
        rows = self.virtual["weight"].rows(input)
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)


class RoastEmbeddingBag(_Virtual, nn.EmbeddingBag):
    """nn.EmbeddingBag with a virtual table float32[num_embeddings, dim]; mode max expands it.

    input: int64[bags, length], or int64[n] with offsets int64[bags].
    """

    _origin = (nn.EmbeddingBag, ("weight",))
    weight = _reader("weight")

    def __init__(self, weight: VirtualWeight, **options: Any) -> None:
        _initialise(self, nn.EmbeddingBag, {"weight": weight}, *weight.mapping.shape, **options)

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name, which users pass
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if per_sample_weights is not None and self.mode != "sum":
            raise InputError(f"per_sample_weights need mode 'sum', this bag has {self.mode!r}")
        if self.mode == "max":
            return super().forward(input, offsets, per_sample_weights)
        if input.dim() not in (1, 2) or (offsets is None) == (input.dim() == 1):
            raise InputError("a bag takes int64[bags, length] alone, or int64[n] with offsets")
        rows = self.virtual["weight"].rows(input)
        dtype = rows.dtype
        if dtype in NARROW:
            rows = rows.float()  # as torch's own bags, which add in float32
        weights = torch.ones_like(input, dtype=rows.dtype)
        if per_sample_weights is not None:
            weights = per_sample_weights.to(rows.dtype)
        if self.padding_idx is not None:
            weights = weights.masked_fill(input == self.padding_idx, 0.0)
        rows = rows * weights.unsqueeze(-1)
        if offsets is None:
            total, count = rows.sum(1), weights.sum(1)
        else:
            # The bag of element e is the number of bags that start at or before e, less one.
            place = torch.arange(input.shape[0], device=input.device)
            bag = (place[:, None] >= offsets[None, :]).sum(1) - 1
            total = rows.new_zeros(offsets.shape[0], rows.shape[1]).index_add(0, bag, rows)
            count = weights.new_zeros(offsets.shape[0]).index_add(0, bag, weights)
            if self.include_last_offset:
                # The last offset starts no bag: torch leaves out the ids from there on.
                total, count = total[:-1], count[:-1]
        if self.mode == "mean":
            total = total / count.clamp(min=1.0).unsqueeze(-1)
        return total.to(dtype)


class _VirtualRNN(_Virtual):
    """nn.LSTM, nn.GRU and nn.RNN keep a list of their weights; here the list is made when asked for."""

    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        """torch assigns the list after every change of a parameter; ours has nothing to keep."""

    def _weights_have_changed(self) -> bool:
        return False

    def flatten_parameters(self) -> None:
        """Virtual weights have no storage that cuDNN could lay out."""


_made_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[_Virtual]] = {}

_OWN_CLASSES: dict[type[nn.Module], type[_Virtual]] = {
    nn.Linear: RoastLinear,
    nn.Conv1d: RoastConv1d,
    nn.Conv2d: RoastConv2d,
    nn.Embedding: RoastEmbedding,
    nn.EmbeddingBag: RoastEmbeddingBag,
}


def _class_for(base: type[nn.Module], names: tuple[str, ...]) -> type[_Virtual]:
    """The class of a `base` whose parameters `names` are virtual; one class however often it is asked for."""
    if base in _OWN_CLASSES and names == ("weight",):
        return _OWN_CLASSES[base]
    if (base, names) not in _made_classes:
        mixin = _VirtualRNN if issubclass(base, nn.RNNBase) else _Virtual
        body: dict[str, Any] = {name: _reader(name) for name in names}
        body["_origin"] = (base, names)
        _made_classes[base, names] = type(f"Roast{base.__name__}", (mixin, base), body)
    return _made_classes[base, names]


def _rebuild(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    return cast(nn.Module, object.__new__(_class_for(base, names)))


def _initialise(
    module: nn.Module, base: type[nn.Module], weights: dict[str, VirtualWeight], *args: Any, **options: Any
) -> None:
    """Take the options and the other parameters of a fresh `base`, without its weight in memory."""
    with torch.device("meta"):
        plain = base(*args, **options)
    module.__dict__.update(plain.__dict__)
    for name, parameter in plain.named_parameters():
        if name not in weights:
            module._parameters[name] = nn.Parameter(torch.zeros(parameter.shape))
    _put(module, weights)


def _put(module: nn.Module, weights: dict[str, VirtualWeight]) -> None:
    for name in weights:
        del module._parameters[name]
    module.__dict__.pop("_flat_weights", None)
    module.__dict__.pop("_flat_weight_refs", None)
    module._modules["virtual"] = _Weights(weights)


def make_virtual(module: nn.Module, weights: dict[str, VirtualWeight]) -> nn.Module:
    """Replace the named parameters of `module` in place by virtual ones; returns the same object.

    Raises:
        InputError: the module already has something called `virtual`.
    """
    if hasattr(module, "virtual"):
        raise InputError(f"{type(module).__name__} already has an attribute 'virtual'; exclude this module")
    for name, weight in weights.items():
        if tuple(getattr(module, name).shape) != weight.mapping.shape:
            raise MappingError(f"{name} has another shape than its mapping {list(weight.mapping.shape)}")
    if getattr(module, "max_norm", None) is not None:
        raise InputError("max_norm writes to the table, and a virtual table cannot be written; exclude it")
    _put(module, weights)
    module.__class__ = _class_for(type(module), tuple(sorted(weights)))
    return module


def install(model: nn.Module, weights: dict[str, VirtualWeight]) -> None:
    """`make_virtual` of every module that has one of the parameters; names are dotted, as in a state dict."""
    owners: dict[int, tuple[nn.Module, dict[str, VirtualWeight]]] = {}
    for name, weight in weights.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        owners.setdefault(id(module), (module, {}))[1][attribute] = weight
    for module, own in owners.values():
        make_virtual(module, own)


def virtual_weights(model: nn.Module) -> dict[str, VirtualWeight]:
    """Every virtual weight by the dotted name of the parameter it replaces, tied ones under each name."""
    found: dict[str, VirtualWeight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Virtual):
            weights = module.virtual
            found.update({f"{path}.{name}" if path else name: weights[name] for name in weights})
    return found
