"""Compressed models train: native gradients against aten's, and what torch does around the operators."""

import shutil

import pytest
import torch
from test_torch_ops import GRADIENT_MAPPINGS, array
from torch import library, nn

import roast_export
from roast_export import torch_ops

if torch_ops.LIBRARY_ABSENT:
    pytest.skip(torch_ops.LIBRARY_ABSENT, allow_module_level=True)

mappings = pytest.mark.parametrize("mapping", GRADIENT_MAPPINGS.values(), ids=GRADIENT_MAPPINGS)
BOUND = {"atol": 2e-5, "rtol": 1e-5}


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def product(mapping):
    rows, columns = mapping.shape
    return values(3, columns), values(rows)


@mappings
def test_native_gradients_are_those_of_float64_in_aten(mapping):
    """Each of gather, embedding and linear, in the array, x and the bias."""
    fields, ids = mapping.to_list(), torch.tensor([[0, 4], [4, 2]])
    x, bias = product(mapping)
    found = []
    for dtype in (torch.float64, torch.float32):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (array(mapping.n_memory), x, bias)]
        memory, x_leaf, bias_leaf = leaves
        outputs = [
            torch_ops.gather(memory, fields, -0.5),
            torch_ops.embedding(memory, ids, fields, -0.5),
            torch_ops.linear(x_leaf, memory, bias_leaf, fields, -0.5),
        ]
        weights = [values(*y.shape).to(dtype) for y in outputs]
        sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for exact, native in zip(*found, strict=True):
        assert native.dtype == torch.float32
        scale = max(1.0, float(exact.detach().abs().max()))
        assert float((native - exact).detach().abs().max()) <= 2e-6 * scale
    assert all(leaf.any() for leaf in found[1][-3:])


@mappings
def test_gradcheck_in_float32(mapping):
    """The operators are linear in the array and bilinear in x: a step of 1 has no error of its own."""
    fields, ids = mapping.to_list(), torch.tensor([0, 3, 3])
    x, bias = (t.float().requires_grad_() for t in product(mapping))
    memory = array(mapping.n_memory, torch.float32)
    cases = [
        (lambda m: torch_ops.gather(m, fields, 0.5), (memory,)),
        (lambda m: torch_ops.embedding(m, ids, fields, 0.5), (memory,)),
        (lambda *a: torch_ops.linear(*a, fields, 0.5), (x, memory, bias)),
    ]
    for function, inputs in cases:
        with pytest.warns(UserWarning, match="double precision"):
            assert torch.autograd.gradcheck(function, inputs, eps=1.0, atol=1e-3, rtol=1e-3)


def test_control_gradcheck_refuses_a_wrong_record(monkeypatch):
    mapping = GRADIENT_MAPPINGS["row tiles"]
    wrong = mapping.to_list()
    wrong[15] += 1

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory):
            return torch_ops.gather(memory, mapping.to_list(), 0.5)

        @staticmethod
        def backward(ctx, grad):
            return torch_ops.gather_backward(grad, wrong, 0.5)

    memory = array(mapping.n_memory, torch.float32)
    with pytest.warns(UserWarning, match="double precision"), pytest.raises(RuntimeError, match="Jacobian"):
        torch.autograd.gradcheck(Wrong.apply, memory, eps=1.0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", ["row tiles", "transposed tiles", "wrapping"])
def test_dispatcher_rules_of_linear(name, with_bias):
    mapping = GRADIENT_MAPPINGS[name]
    x, bias = (t.float().requires_grad_() for t in product(mapping))
    memory = array(mapping.n_memory, torch.float32)
    arguments = (x, memory, bias if with_bias else None, mapping.to_list(), 0.5)
    library.opcheck(torch.ops.roast.linear.default, arguments)


def layers(seed=0):
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return roast_export.compress(dense, 8, init="fresh", min_params=256)


def test_autocast_gives_what_a_dense_layer_gives():
    model, x = layers()[0], torch.randn(5, 64)
    dense = nn.Linear(64, 128)
    with torch.no_grad():
        dense.weight.copy_(model.weight)
        dense.bias.copy_(model.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = model(x), dense(x)
        assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert model.virtual["weight"].memory.grad.dtype == torch.float32
    assert model(x).dtype == torch.float32


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")),
    ],
)
def test_compile_gives_one_graph_with_equal_results(backend):
    model, x = layers(), torch.randn(5, 64)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), **BOUND)
    (plain,) = torch.autograd.grad(model(x).square().sum(), model[0].virtual["weight"].memory)
    (fast,) = torch.autograd.grad(compiled(x).square().sum(), model[0].virtual["weight"].memory)
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=1e-4)


def test_functional_call():
    model, x = layers(), torch.randn(5, 64)
    other = {name: 2 * value.detach() for name, value in model.named_parameters()}
    found = torch.func.functional_call(model, other, (x,))
    twin = layers()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(other[name])
        torch.testing.assert_close(found, twin(x), **BOUND)


def curve(native, steps=200):
    """Losses of a digits-size model: 8x8 images whose class is where their mass lies."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    model = roast_export.compress(dense, 20, init="fresh")
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(512, 64, generator=generator)
    labels = (images @ torch.randn(64, 10, generator=generator)).argmax(1)
    roast_export.scale_gradients(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        batch = torch.arange(64 * step, 64 * (step + 1)) % 512
        if native:
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
        else:
            with torch_ops.without_library():
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


def test_200_steps_give_one_loss_curve():
    """Rounding differs, and every step carries it on; at rates where training jumps about, without bound."""
    native, aten = curve(True), curve(False)
    assert native[0] > 2
    assert native[-8:].mean() < native[:8].mean() / 1.5
    assert float((native - aten).abs().max()) < 1e-3
    assert not torch.equal(native, aten), "both went the same way: nothing was compared"
