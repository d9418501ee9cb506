"""How a model is called: any signature as named tensors in, tensors out.

Everything after the border sees a PlainModel: forward takes one tensor for each name, and returns a
tensor, or tuples, lists and dicts of tensors.

| among the arguments | becomes |
|---|---|
| tensor | an input |
| list, tuple, dict, NamedTuple, dataclass, other pytree nodes | an input for each tensor in it |
| None, number, text, bool, enum, dtype ... | the value that the file computes with, told in `facts` |
| anything else | refused by name |

| among the outputs | becomes |
|---|---|
| tensor | an output |
| list, tuple | an output for each tensor in it, by position |
| dict, NamedTuple, dataclass, ModelOutput | an output for each tensor in it, by name |
| None, number, text ..., a cache of transformers | left out, told in `facts` |
| anything else | refused by name |
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Mapping as Lookup
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from roast_export.containers import CONSTANTS, items_of, with_items
from roast_export.errors import ExportError, InputError
from roast_export.wrappers import unwrapped

Inputs = tuple[Any, ...] | Lookup[str, Any]
"""Arguments of forward, in order, or by name."""

Axis = tuple[str, int]
"""A dimension: the name of an input, and which of its axes."""


class PlainModel(nn.Module):
    """A model under another signature: the same parameters, buffers and submodules by the same names."""

    def __init__(
        self,
        model: nn.Module,
        template: Any,
        names: Sequence[str],
        facts: Sequence[str],
        positional: int = 0,
    ) -> None:
        """positional: how many of the tensors were given by position; the others were given by name."""
        super().__init__()
        # The registries are the model's own, so that whatever replaces a tensor of one replaces it in both.
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[registry] = model.__dict__[registry]
        self.__dict__["original"] = model
        self.__dict__["training"] = model.training
        self.template = template
        self.names = list(names)
        self.positional = positional
        self.ties: list[tuple[Axis, Axis]] = []
        """Dimensions that must have one length; a trace gives them one symbol."""
        self.fixed_at: dict[Axis, str] = {}
        """The lines that were seen to make a number of a dimension, which fixes it."""
        self.facts = list(facts)
        self.__class__ = type(type(model).__name__, (type(self),), {"forward": _forward_of(self.names)})

    def train(self, mode: bool = True) -> PlainModel:
        self.__dict__["original"].train(mode)
        self.__dict__["training"] = mode
        return self

    @property
    def as_it_is(self) -> bool:
        """Whether the model itself takes these tensors by these names."""
        args, kwargs = self.template
        return (
            all(isinstance(value, Hole) for value in [*args, *kwargs.values()])
            and [*inspect.signature(self.__dict__["original"].forward).bind(*args, **kwargs).arguments]
            == self.names
        )

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """The outputs of the model for one tensor of each name."""
        self.check_ties(tensors)
        return self.own_outputs(tensors)

    def check_ties(self, tensors: Sequence[Tensor]) -> None:
        """Tell a trace which dimensions have one length."""
        by_place = dict(zip(self.names, tensors, strict=True))
        for (a, i), (b, j) in self.ties:
            torch._check(by_place[a].shape[i] == by_place[b].shape[j])

    def own_outputs(self, tensors: Sequence[Tensor]) -> Any:
        """What the model gives for one tensor in each hole of the template."""
        model = self.__dict__["original"]
        args, kwargs = _rebuilt(self.template, tensors)
        # Module.compile() leaves a compiled call behind, which nothing can trace.
        forward = model._call_impl if getattr(model, "_compiled_call_impl", None) is not None else model
        known = [*tensors, *model.parameters(), *model.buffers()]
        return plain_outputs(forward(*args, **kwargs), {id(tensor) for tensor in known}, [])


def _forward_of(names: list[str]) -> Callable[..., Any]:
    """A forward that torch.export sees as one of named tensors."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *(inspect.Parameter(name, kind) for name in names),
        ]
    )

    def forward(self: PlainModel, *args: Tensor, **kwargs: Tensor) -> Any:
        bound = signature.bind(self, *args, **kwargs).arguments
        return self.call([bound[name] for name in names])

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def plain(model: nn.Module, inputs: Inputs) -> tuple[PlainModel, dict[str, Tensor]]:
    """The model under a signature of named tensors, and the example by those names.

    Each tensor of the example is a copy in memory of its own: nothing else of the storage behind a slice
    comes along, and one tensor given for two arguments becomes two.

    Raises:
        InputError: the arguments do not fit forward, one is of a kind that no file takes, or the model
            does not run on them or returns no tensor.
    """
    if isinstance(model, PlainModel):
        args, kwargs = split(inputs)
        return model, {name: _own(value, name) for name, value in by_name(model.names, kwargs, args).items()}
    model = unwrapped(model)
    devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]} - {"cpu"}
    if devices:
        raise InputError(f"the model is on {sorted(devices)[0]}; move it with model.cpu()")
    args, kwargs = split(inputs)
    tensors: dict[str, Tensor] = {}
    facts: list[str] = []
    template, positional = _template(model, args, kwargs, tensors, facts)
    found = run(model, *_rebuilt(template, list(tensors.values())))
    if not pytree.tree_leaves(plain_outputs(found, set(), facts)):
        raise InputError("the model returns no tensor, so that a file of it would hold nothing to run")
    return PlainModel(model, template, list(tensors), facts, positional), tensors


def split(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a forward call."""
    if isinstance(inputs, Lookup):
        return (), dict(inputs)
    return tuple(inputs) if isinstance(inputs, Sequence) else (inputs,), {}


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the model. Raises InputError if it does not run."""
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"the model does not run on these inputs: {reason}; give others") from error


def arguments(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Inputs by the names of forward's arguments, in the order of the call."""
    args, kwargs = split(inputs)
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise InputError(f"the model does not run on these inputs: {error}; give others") from error


def facts_of(model: nn.Module) -> list[str]:
    """What a report must tell of how the model is called: full sentences."""
    return list(getattr(model, "facts", []))


def original(model: nn.Module) -> nn.Module:
    """The module that holds the state: a PlainModel calls one."""
    found: nn.Module = model.__dict__["original"] if isinstance(model, PlainModel) else model
    return found


class Hole:
    """The place of the k-th tensor."""

    def __init__(self, k: int) -> None:
        self.k = k


def _template(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: dict[str, Tensor],
    facts: list[str],
) -> tuple[tuple[list[Any], dict[str, Any]], int]:
    """(args, kwargs) with a hole for each tensor, and how many of them were given by position.

    The tensors go into `tensors` by name, in the order of the signature.
    """
    signature = inspect.signature(model.forward)
    args, kwargs = _in_place(signature, args, kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in signature.parameters]
        rest = f", not {', '.join(unknown)}" if unknown else ""
        takes = f"; it takes {', '.join(signature.parameters)}{rest}"
        raise InputError(f"the model does not run on these inputs: {error}{takes}") from error
    given, positional = set(signature.bind_partial(*args).arguments), 0
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {
                key: _holed(item, [str(key)], tensors, facts) for key, item in value.items()
            }
        else:
            bound.arguments[name] = _holed(value, [name], tensors, facts)
        positional = len(tensors) if name in given else positional
    return (list(bound.args), bound.kwargs), positional


def _in_place(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call, where arguments that Python takes by position alone may be given by name.

    Those are arguments before a `/`, and `*xs`, whose values are a tuple or a list.
    """
    parameters = list(signature.parameters.values())
    alone = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    last = max((k for k, p in enumerate(parameters) if p.kind in alone and p.name in kwargs), default=-1)
    if args or last < 0:
        return args, kwargs
    found: list[Any] = []
    rest = dict(kwargs)
    for parameter in parameters[: last + 1]:
        if parameter.name not in rest:
            break
        value = rest.pop(parameter.name)
        found += value if parameter.kind is inspect.Parameter.VAR_POSITIONAL else [value]
    return tuple(found), rest


def _holed(value: Any, path: list[str], tensors: dict[str, Tensor], facts: list[str]) -> Any:
    """`value` with a hole in the place of each tensor in it."""
    if isinstance(value, Tensor):
        name = free_name("_".join(path), tensors)
        tensors[name] = _own(value, name)
        return Hole(len(tensors) - 1)
    if isinstance(value, CONSTANTS):
        facts.append(
            f"The argument {'.'.join(path)} was {value!r} in the example; the file computes with that value."
        )
        return value
    parts = items_of(value)
    if parts is None:
        raise InputError(
            f"the argument {'.'.join(path)} is a {type(value).__qualname__}, which no file can take; give "
            "tensors, numbers, or lists, tuples, dicts, NamedTuples or dataclasses of them"
        )
    return with_items(value, [(key, _holed(item, [*path, str(key)], tensors, facts)) for key, item in parts])


def holes(template: Any, along: Any) -> Iterator[tuple[int, Any]]:
    """(k, what stands in the place of the k-th tensor) in a structure like the template.

    Raises:
        InputError: `along` has another structure.
    """
    if along is None or isinstance(template, CONSTANTS):
        return
    if isinstance(template, Hole):
        yield template.k, along
        return
    for place, (key, item) in enumerate(items_of(template) or ()):
        try:
            below = along.get(key) if isinstance(along, Lookup) else along[place]
        except (IndexError, TypeError, KeyError):
            raise InputError("dynamic_shapes has not the structure of the example inputs") from None
        yield from holes(item, below)


def _rebuilt(template: Any, tensors: Sequence[Tensor]) -> Any:
    """The template with tensors in its holes."""
    if isinstance(template, Hole):
        return tensors[template.k]
    if isinstance(template, CONSTANTS):
        return template
    return with_items(template, [(key, _rebuilt(item, tensors)) for key, item in items_of(template) or ()])


def _own(value: Tensor, name: str = "") -> Tensor:
    """A copy in dense memory of its own, outside any graph of gradients."""
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        kind = "quantized" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
        raise InputError(
            f"the argument {name} is a {kind} tensor; give a dense one (to_dense(), dequantize())"
        )
    return value.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)


def free_name(text: str, taken: Collection[str]) -> str:
    """A name that is an identifier and that nothing else has."""
    name = re.sub(r"\W", "_", text)
    name = f"_{name}" if not name or name[0].isdigit() else name
    name = f"{name}_" if keyword.iskeyword(name) else name
    found, k = name, 1
    while found in taken:
        found, k = f"{name}_{k}", k + 1
    return found


def plain_outputs(value: Any, seen: set[int], facts: list[str], path: str = "") -> Any:
    """Outputs as a tensor, or tuples, lists and dicts of tensors without what is no tensor.

    seen: ids of tensors that an output must not be, or the file would have one value under two names.

    Raises:
        ExportError: an output is of a kind that no file gives.
    """
    place = path or "0"
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise InputError(
                f"the output {place} is a tensor of {value.layout}; return a dense one (to_dense())"
            )
        found = value.clone() if id(value) in seen else value
        seen.add(id(value))
        return found
    if isinstance(value, CONSTANTS):
        facts.append(f"The output {place} was {value!r} for the example; the file leaves it out.")
        return ()
    if is_cache(value):
        facts.append(f"The output {place} is a {type(value).__name__}; the file leaves it out.")
        return ()
    parts = items_of(value)
    if parts is None:
        raise ExportError(
            f"the output {place} is an object of {type(value).__qualname__}, which no file can give; wrap "
            "the model in a module that returns tensors, or lists, tuples, dicts, NamedTuples or dataclasses"
        )
    made = [(key, plain_outputs(item, seen, facts, f"{path}.{key}".lstrip("."))) for key, item in parts]
    kept = [(key, item) for key, item in made if isinstance(item, Tensor) or item]
    if any(isinstance(key, str) for key, _ in kept):
        return {re.sub(r"[^\w.:/@ -]", "_", str(key)): item for key, item in kept}
    return tuple(item for _, item in kept)


def is_cache(value: Any) -> bool:
    """Whether this is keys and values of earlier tokens as transformers hold them."""
    return any(
        base.__module__.startswith("transformers.") and base.__name__.endswith("Cache")
        for base in type(value).__mro__
    )


def plain_name(name: str) -> str:
    """A file's name of an input as `plain` writes it: past_key_values_0_key of past_key_values.0.key."""
    return re.sub(r"\W", "_", name)


def by_name(names: Sequence[str], kwargs: Lookup[str, Any], args: Sequence[Any] = ()) -> dict[str, Tensor]:
    """Tensors by name, in the order of the names; also of nested arguments, which are named as `plain` does.

    Raises:
        InputError: there are others, or a constant, which the trace has folded.
    """
    if not all(isinstance(value, Tensor) for value in [*args, *kwargs.values()]):
        first: dict[str, Tensor] = {}
        rest: dict[str, Tensor] = {}
        for k, value in enumerate(args):
            _holed(value, [str(k)], first, [])
        for name, value in kwargs.items():
            if isinstance(value, CONSTANTS) and value is not None:
                raise InputError(
                    f"the argument {name!r} is {value!r}; a traced model computes with the constants of its "
                    "example, so leave it out, or save the model with this value among its example inputs"
                )
            _holed(value, [name], rest, [])
        args, kwargs = list(first.values()), rest
    takes = f"the model takes {', '.join(names)}"
    if len(args) > len(names):
        raise InputError(f"{len(args)} inputs are given; {takes}")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for name in given:
        if name not in names:
            raise InputError(f"no input is called {name!r}; {takes}")
    for name in names:
        if name not in given:
            raise InputError(f"no input {name!r} is given; {takes}")
        if not isinstance(given[name], Tensor):
            raise InputError(f"the input {name!r} is a {type(given[name]).__name__}; give a tensor")
    return {name: given[name] for name in names}


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
