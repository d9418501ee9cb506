"""Modules that do more with their parameters than read them: compressed right, or refused by name."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from roast_export import compress, export
from roast_export.errors import InputError
from roast_export.modules import virtual_weights

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


def old_weight_norm(module, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(module, **options)


def pruned():
    layer = nn.Linear(64, 64)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


class Bare(nn.Module):
    """Parameters without a layer around them, some in lists and dicts."""

    def __init__(self):
        super().__init__()
        # The RMS of this one rounds to a scale of 1: then the array holds the weight's own values.
        self.w = nn.Parameter(torch.randn(64, 64))
        self.more = nn.ParameterList([nn.Parameter(torch.randn(64, 64) / 8) for _ in range(2)])
        self.named = nn.ParameterDict({"weight": nn.Parameter(torch.randn(64, 64) / 8)})

    def forward(self, x):
        return x @ self.w @ self.more[0] @ self.more[1] @ self.named["weight"]


class Watched(nn.Module):
    """Attributes are set and got in ways of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64)
        self.names = []

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if "names" in self.__dict__:
            self.names.append(name)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x) @ self.weight


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Turned(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.t().contiguous(), self.bias)


KINDS = {
    "weight_norm, hooks": (lambda: old_weight_norm(nn.Linear(64, 64)), {"weight_v"}),
    "weight_norm, hooks, all at once": (lambda: old_weight_norm(nn.Linear(64, 64), dim=None), {"weight_v"}),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(64, 64)),
        {"parametrizations.weight.original1"},
    ),
    "spectral_norm, hooks": (lambda: spectral_norm(nn.Linear(64, 64)), {"weight_orig"}),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(64, 64)),
        {"parametrizations.weight.original"},
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(64, 64)),
        {"parametrizations.weight.original"},
    ),
    "pruned": (pruned, {"weight_orig"}),
    "bare parameters": (Bare, {"w", "more.0", "more.1", "named.weight"}),
    "attributes of its own": (Watched, {"inner.weight"}),
    "a linear layer that doubles": (lambda: Doubling(64, 64), {"weight"}),
    "a linear layer that turns its weight": (lambda: Turned(64, 64), {"weight"}),
    "compiled": (lambda: torch.compile(nn.Linear(64, 64), backend="eager"), {"weight"}),
}


def built(build):
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize(("build", "names"), KINDS.values(), ids=KINDS)
def test_kinds_that_are_compressed(build, names):
    dense = built(build)
    before = dense(X).detach()
    compressed = compress(dense, 1, min_params=1000)
    assert set(virtual_weights(compressed)) == names
    torch.testing.assert_close(compressed(X).detach(), before)
    torch.testing.assert_close(dense(X).detach(), before)
    small = compress(dense, 8, min_params=1000)
    assert not torch.allclose(small(X), before)
    small(X).square().sum().backward()
    (memory,) = {id(w.memory): w.memory for w in virtual_weights(small).values()}.values()
    assert memory.grad.any()


def test_weight_norm_keeps_the_norms_that_it_stores():
    dense = built(lambda: old_weight_norm(nn.Linear(64, 64)))
    small = compress(dense, 8, min_params=1000)
    small(X)
    torch.testing.assert_close(small.weight.norm(dim=1), dense.weight_g[:, 0])


@pytest.mark.parametrize(("kind", "ratio"), [("weight_norm, hooks", 8), ("bare parameters", 1)])
def test_kinds_that_are_exported(kind, ratio, tmp_path):
    compressed = compress(built(KINDS[kind][0]), ratio, min_params=1000)
    assert export(compressed, tmp_path / "m.onnx", example_inputs=(X,)).passed


class HoldsAgain(nn.Module):
    def __init__(self, hold):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.__dict__["held"] = hold(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


class Plain:
    def __init__(self, value):
        self.value = value


HOLDS = {
    "as itself": lambda w: w,
    "in a list": lambda w: [0, w],
    "in a dict of tuples": lambda w: {"a": (w, 1)},
    "in an object": Plain,
    "in a closure": lambda w: lambda x: x @ w,
    "in an optimiser": lambda w: torch.optim.SGD([w], lr=1.0),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_a_parameter_that_is_held_twice_is_refused_by_name(hold):
    model = nn.ModuleDict({"part": built(lambda: HoldsAgain(hold))})
    with pytest.raises(InputError, match=r"part\.held holds part\.layer\.weight a second time.*exclude"):
        compress(model, 4)
    with pytest.raises(InputError, match="no parameter is left"):
        compress(model, 4, exclude="part.layer.weight")


def test_control_other_things_may_be_held():
    model = built(lambda: HoldsAgain(lambda w: [w.shape, torch.ones(3), nn.Linear(2, 2), lambda x: x]))
    assert set(virtual_weights(compress(model, 4))) == {"layer.weight"}


def test_a_lazy_module_is_told_to_see_an_example_first():
    model = nn.Sequential(nn.LazyLinear(64))
    with pytest.raises(InputError, match=r"0\.weight has no shape yet.*call the model once"):
        compress(model, 4)
    model(X)
    assert set(virtual_weights(compress(model, 4))) == {"0.weight"}
