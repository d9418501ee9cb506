"""Finding the layers of research code in a model and putting virtual layers in their place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from roast_export import from_fakeroast, from_hashednet, from_robe, from_rzlinear
from roast_export.errors import LoadError, MappingError
from roast_export.facts import Facts, read_facts
from roast_export.import_report import ImportedLayer, ImportReport
from roast_export.importing import Converted, SharedArrays, Surroundings, refusal
from roast_export.modules import virtual_weights
from roast_export.program import evaluation

IMPORTERS: tuple[ModuleType, ...] = (from_fakeroast, from_rzlinear, from_robe, from_hashednet)
"""One for each source format; the table of docs/checkpoints.md says what each file offers."""

MAX_REFUSALS = 5
Found = dict[str, tuple[nn.Module, ModuleType]]


def convert(
    model: nn.Module,
    facts: Facts | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    keep_dense: bool = False,
) -> tuple[nn.Module, ImportReport]:
    """Replace every layer of research code by a virtual layer that computes the same.

    The model is changed in place, and only if every layer can be converted; it comes back with the
    report. Index tables are compared with the recovered formula entry by entry.
    facts: what the model does not hold (docs/checkpoints.md), as a dict or a .toml or .json file.
    keep_dense: give a layer without a formula its expanded weight, instead of refusing.

    Raises:
        LoadError: a layer cannot be proved, or is damaged; the message names layers and alternatives.
        InputError: the facts are malformed or name no layer.
    """
    found, results, arrays = _examined(model, facts, keep_dense)
    refused = [result.layer for result in results if result.module is None]
    if refused:
        raise LoadError(_refusals(refused, len(found)))
    modules = {id(found[r.layer.name][0]): r.module for r in results if r.module is not None}
    model = _installed(model, modules, arrays)
    report = _report(model, [result.layer for result in results], arrays)
    model.__dict__["_roast_import"] = report
    return model, report


def survey(
    model: nn.Module, facts: Facts | Mapping[str, Any] | str | os.PathLike[str] | None = None
) -> ImportReport:
    """The report of a conversion that is not done: refused layers are rows of it, the model stays.

    Raises:
        LoadError: a layer is damaged.
        InputError: the facts are malformed or name no layer.
    """
    _, results, arrays = _examined(model, facts, False)
    layers = [result.layer for result in results]
    array_bytes = sum(p.nbytes for p in set(arrays.parameters.values()))
    tensors = {t.untyped_storage().data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    tables = sum(layer.table_bytes for layer in layers)
    return ImportReport(
        layers, array_bytes, max(0, sum(tensors.values()) - array_bytes - tables), arrays.notes()
    )


def _examined(
    model: nn.Module, facts: Facts | Mapping[str, Any] | str | os.PathLike[str] | None, keep_dense: bool
) -> tuple[Found, list[Converted], SharedArrays]:
    """Every research layer with its replacement or refusal; nothing is changed yet."""
    read = read_facts(facts)
    found = research_layers(model)
    if not found:
        raise LoadError(
            "no layer of this model is of a research format known here (FakeRoast, RzLinear, ROBE, HashedNet)"
        )
    read.check_names(found)
    arrays = SharedArrays()
    return found, list(_convert_all(model, found, read, arrays, keep_dense)), arrays


def research_layers(model: nn.Module) -> Found:
    """Layers that an importer knows, by dotted name, each module once."""
    found: Found = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        importer = next((x for x in IMPORTERS if x.matches(module)), None)
        if importer:
            found[name] = (module, importer)
            inside.append(f"{name}." if name else "")
    return found


def _convert_all(
    model: nn.Module, found: Found, facts: Facts, arrays: SharedArrays, keep_dense: bool
) -> Iterator[Converted]:
    offsets = _offsets(model, found)
    totals = {x: sum(x.elements(m) for m, y in found.values() if y is x) for x in IMPORTERS}
    seeds: list[int] = []
    for name, (module, importer) in found.items():
        around = Surroundings(
            name, facts.of(name), arrays, offsets[name], totals[importer], seeds, keep_dense
        )
        try:
            result: Converted = importer.convert(module, around)
        except (LoadError, MappingError) as error:
            result = refusal(around, module, (), str(error))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = f"its attributes are not those of this class ({error}); is it another version?"
            result = refusal(around, module, (), reason)
        difference = None if result.module is None else _difference(module, result.module)
        if difference is not None:
            reason = (
                f"its forward gives other outputs than its formula (they differ by {difference:.3g}); it is "
                "another version of this class"
            )
            result = refusal(around, module, result.layer.shape, reason, result.layer.table_bytes)
        yield result


def _offsets(model: nn.Module, found: Found) -> dict[str, tuple[int, ...]]:
    """Running sums of elements before each layer, in the orders that research code walks a model."""
    names = {id(module): name for name, (module, _) in found.items()}
    orders = [list(_roaster_order(model, names)), list(found)]
    offsets: dict[str, list[int]] = {name: [] for name in found}
    for order in orders:
        running = dict.fromkeys(IMPORTERS, 0)
        for name in order:
            module, importer = found[name]
            offsets[name].append(running[importer])
            running[importer] += importer.elements(module)
    return {name: tuple(dict.fromkeys([*given, 0])) for name, given in offsets.items()}


def _roaster_order(module: nn.Module, names: dict[int, str]) -> Iterator[str]:
    """FakeRoast's ModelRoaster: attributes in the order of dir(), then each child in its turn.

    dir() of a module leaves out names that begin with a digit, as those of nn.Sequential do.
    """
    children = {name: child for name, child in module._modules.items() if child is not None}
    listed = [children[name] for name in sorted(children) if not name[0].isdigit()]
    for child in listed:
        if id(child) in names:
            yield names.pop(id(child))
    for child in children.values():
        if id(child) in names:
            yield names.pop(id(child))
        yield from _roaster_order(child, names)
    if id(module) in names:
        yield names.pop(id(module))


def _difference(module: nn.Module, made: nn.Module) -> float | None:
    """The largest output difference where it is more than rounding; None, too, if it cannot be run."""
    inputs = _inputs(made)
    if inputs is None:
        return None
    try:
        with evaluation(module), torch.no_grad():
            expected = module(inputs)
    except Exception:
        # No GPU, no Triton, or only a stand-in for the module: the table is the proof.
        return None
    with evaluation(made), torch.no_grad():
        actual = made(inputs)
    expected, actual = (x[0] if isinstance(x, tuple) else x for x in (expected, actual))
    if expected.shape != actual.shape:
        return float("inf")
    difference = float((expected - actual).abs().max())
    return difference if not difference <= 1e-4 * (1 + float(expected.abs().max())) else None


def _inputs(made: nn.Module) -> Tensor | None:
    """A small input for a converted layer."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(made, nn.Linear):
        return torch.randn(2, made.in_features, generator=generator)
    if isinstance(made, nn.Conv2d):
        reach = [d * (k - 1) + 3 for d, k in zip(made.dilation, made.kernel_size, strict=True)]
        return torch.randn(1, made.in_channels, *reach, generator=generator)
    if isinstance(made, nn.Embedding | nn.EmbeddingBag):
        return torch.randint(0, made.num_embeddings, (8,), generator=generator)
    return None


def _installed(model: nn.Module, modules: dict[int, nn.Module], arrays: SharedArrays) -> nn.Module:
    """The model with its research layers replaced, under every name that they have."""
    if id(model) in modules:
        return modules[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in modules:
                parent._modules[name] = modules[id(child)]
    # FakeRoast v2 keeps the shared array at the top as well: there is one array, not two.
    top = model._parameters.get("roast_array")
    if top is not None and arrays.holds(top):
        del model._parameters["roast_array"]
    return model


def _report(model: nn.Module, layers: list[ImportedLayer], arrays: SharedArrays) -> ImportReport:
    memories = {id(w.memory): w.memory for w in virtual_weights(model).values()}
    kept = [t for t in [*model.parameters(), *model.buffers()] if id(t) not in memories]
    unique = {t.untyped_storage().data_ptr(): t.nbytes for t in kept}
    return ImportReport(
        layers, sum(m.nbytes for m in memories.values()), sum(unique.values()), arrays.notes()
    )


def _refusals(refused: list[ImportedLayer], total: int) -> str:
    lines = [f"layer {layer.name!r} ({layer.source}): {layer.how}" for layer in refused[:MAX_REFUSALS]]
    more = [f"and {len(refused) - MAX_REFUSALS} more"] if len(refused) > MAX_REFUSALS else []
    head = f"{len(refused)} of {total} compressed layers cannot be converted exactly:"
    return "\n".join([head, *lines, *more])


def layers_in_state(state: Iterable[str]) -> dict[str, ModuleType]:
    """Names of the research layers whose tensors a state dict holds, with their importers."""
    keys = set(state)
    found: dict[str, ModuleType] = {}
    for importer in IMPORTERS:
        for name in importer.names_in_state(keys):
            found.setdefault(name, importer)
    return dict(sorted(found.items()))
