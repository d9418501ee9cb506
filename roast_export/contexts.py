"""The ways in which a user may call a module, and that a file does not know.

A file is compared with the module in evaluation mode under torch.no_grad(). A module may be called with
gradients, in inference mode and in training mode, too; and it may hand something back through its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from roast_export.calls import PlainModel, original
from roast_export.cases import arithmetic
from roast_export.errors import ExportError
from roast_export.module_runs import Outputs, Runs, difference_of, listed, seeded
from roast_export.state import same, unchanged

_MODES: dict[str, tuple[Callable[[], AbstractContextManager[object]], str]] = {
    "with gradients (torch.enable_grad())": (torch.enable_grad, "torch.is_grad_enabled() or requires_grad"),
    "in torch.inference_mode()": (torch.inference_mode, "torch.is_inference_mode_enabled()"),
}
"""How a module may be called, and what a forward asks to tell it."""


def refuse_modes(run: Runs, example: dict[str, Tensor], expected: Outputs) -> None:
    """Raises ExportError if a module gives something else with gradients or in inference mode."""
    for said, (mode, question) in _MODES.items():
        with mode():
            found = _called(run, example, expected)
        difference = None if found is None else difference_of(run.names, "example", expected, found)
        if difference is not None:
            raise ExportError(
                f"the module computes something else {said} than under torch.no_grad(): {difference}; a file "
                f"cannot know how its caller would call the module, so remove the branch on {question}"
            )


def written_inputs(run: Runs, example: dict[str, Tensor]) -> list[str]:
    """What a report must tell of inputs that forward writes into, in full sentences."""
    copies = {name: value.clone() for name, value in example.items()}
    with arithmetic(run.program), torch.no_grad():
        run.model(**copies)
    run.restore()
    changed = [name for name, value in example.items() if not same(value, copies[name])]
    if not changed:
        return []
    return [
        f"Forward writes into {listed('input', changed)}; the file leaves its inputs as they are. If later "
        "calls need what is written, return it from forward, or use --state inputs (state='inputs')."
    ]


def tell_training(model: nn.Module, example: Any, training: bool) -> None:
    """Add to the facts of a module that was given in training mode, where that is not what the file computes.

    training: whether it was; now it is in evaluation mode.
    """
    if not training or not isinstance(model, PlainModel):
        return
    found: list[Outputs] = []
    modules = [module for module in original(model).modules() if not module.training]
    for mode in (False, True):
        with unchanged(model):
            try:
                for module in modules:
                    module.training = mode
                found.append(seeded(lambda: _leaves(model, example)))
            except Exception:
                # Some models need other arguments for training. Then nobody takes one for the other.
                return
            finally:
                for module in modules:
                    module.training = False
    if difference_of([], "example", *found) is not None:
        model.facts.append(
            "The module was given in training mode, and computes something else there (dropout, batch "
            "normalisation, a branch on self.training); the file computes what it does in evaluation mode, "
            "after eval()."
        )


def _called(run: Runs, example: dict[str, Tensor], expected: Outputs) -> Outputs | None:
    """The outputs in the mode that holds; None where the module does not run in it."""
    try:
        with arithmetic(run.program):
            return _leaves(run.model, example)
    except Exception:
        return None
    finally:
        with torch.inference_mode(False):
            run.restore()


def _leaves(model: nn.Module, example: dict[str, Tensor]) -> Outputs:
    copies = {name: value.clone() for name, value in example.items()}
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in pytree.tree_leaves(model(**copies))]
