"""compress(model, ratio): what becomes virtual, how well it fits, and what is refused."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from roast_export import compress, families, projection, scale_gradients
from roast_export.errors import InputError, RoastError
from roast_export.mapping import Sign
from roast_export.modules import virtual_weights
from roast_export.placement import draw_mapping


class Mixed(nn.Module):
    """Every kind of layer once, a tied head, and ragged sizes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(70, 36, padding_idx=0)
        self.conv = nn.Conv1d(36, 36, 3, padding=1, groups=2)
        self.lstm = nn.LSTM(36, 36, batch_first=True)
        self.attention = nn.MultiheadAttention(36, 4, batch_first=True)
        self.norm = nn.LayerNorm(36)
        self.head = nn.Linear(36, 70, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.lstm(x)[0]
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x)


IDS = torch.tensor([[0, 3, 69, 5], [1, 1, 0, 0]])
VIRTUAL_IN_MIXED = {
    "embedding.weight",
    "head.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "attention.in_proj_weight",
}


def seeded(build, seed=0):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = build()
    torch.set_rng_state(state)
    return model


def mixed():
    return seeded(Mixed)


def mlp(*sizes):
    return seeded(lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))))


def arrays(model):
    return list({id(w.memory): w.memory for w in virtual_weights(model).values()}.values())


def tiles_held(mapping):
    """How many tiles of a weight that shares no slot with another one lie in the array."""
    i, j = np.indices(mapping.grid)
    return np.unique(mapping.starts(i, j)).size


def values(model):
    """Everything a model is: parameters, buffers and the records."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else repr(value)
        for name, value in model.state_dict().items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(x, second[name]) if isinstance(x, torch.Tensor) else x == second[name]
        for name, x in first.items()
    )


def pairs(compressed, dense):
    """Each virtual weight once, with the parameter that it stands for."""
    unique = {id(w): (name, w) for name, w in virtual_weights(compressed).items()}
    return [(w, dense.get_parameter(name).detach()) for name, w in unique.values()]


def relative_error(compressed, dense):
    """What the projection minimises: squared error of each weight in units of its mean square, summed."""

    def term(w, target):
        return (w() - target).double().square().sum() / target.double().square().mean()

    return sum(term(w, target) for w, target in pairs(compressed, dense))


def mean_error(compressed, dense):
    """The same for each element: 0 for equal weights, 1 for weights of zeros."""
    numel = sum(target.numel() for _, target in pairs(compressed, dense))
    return float(relative_error(compressed, dense).detach()) / numel


def nearest(dense, ratio, **options):
    """`compress` without the step that gives each weight its size back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "project", projection.least_squares)
        return compress(dense, ratio, **options)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("init", ["project", "fresh"])
def test_the_argument_is_not_touched(init, local):
    model = mixed().train()
    model.norm.weight.requires_grad_(False)
    before, classes = values(model), [type(m) for m in model.modules()]
    state = torch.get_rng_state()
    compressed = compress(model, 20, init=init, local=local)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(values(model), before)
    assert [type(m) for m in model.modules()] == classes
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.add_(1)
    assert same(values(model), before)
    assert compressed.training
    assert not compressed.norm.weight.requires_grad


@pytest.mark.parametrize("ratio", [1, 1.5, 7, 20, 100, 1000])
def test_any_ratio(ratio):
    compressed = compress(mixed(), ratio)
    weights = {id(w): w for w in virtual_weights(compressed).values()}.values()
    (memory,) = arrays(compressed)
    numel = sum(w.mapping.numel for w in weights)
    unit = 128 if numel / ratio >= 16384 else 64 if numel / ratio >= 2048 else 16
    if ratio <= 2:
        # Whole tiles of each weight: test_placement.py has the bound.
        unit = max(16, *(w.mapping.align for w in weights))
        numel = sum(w.mapping.tile_size * tiles_held(w.mapping) for w in weights) * ratio
    assert memory.numel() % unit == 0
    assert numel / ratio <= memory.numel() + 0.5 < numel / ratio + unit + 0.5
    assert set(virtual_weights(compressed)) == VIRTUAL_IN_MIXED
    y = compressed(IDS)
    assert y.shape == (2, 4, 70)
    y.square().sum().backward()
    assert memory.grad.any()
    assert all(p.grad is not None for p in compressed.parameters())


@pytest.mark.parametrize(
    ("shape", "rows", "n_memory", "tile", "align"),
    [
        ((768, 768), False, 20_000, (32, 128), 128),
        ((768, 768), False, 60_000, (32, 64), 64),
        ((120, 768), False, 20_000, (32, 64), 64),
        ((768, 768), False, 10_000, (32, 64), 64),
        ((768, 768), False, 5000, (16, 64), 64),
        ((768, 768), False, 4000, (8, 64), 64),
        ((768, 768), False, 2000, (16, 16), 16),
        ((768, 768), False, 63, (1, 1), 1),
        ((40, 768), False, 10_000, (32, 32), 16),
        ((10, 768), False, 10_000, (16, 16), 16),
        ((64, 3, 3, 3), False, 10_000, (32, 64), 64),
        ((768, 100), True, 10_000, (1, 32), 16),
        ((768, 20), True, 10_000, (1, 16), 16),
        ((768, 10), True, 10_000, (1, 1), 1),
    ],
)
def test_the_largest_tile_that_array_and_layer_take(shape, rows, n_memory, tile, align):
    m = draw_mapping(shape, n_memory, [1], rows=rows)
    assert (m.tile, m.align, m.transposed) == (tile, align, not rows)


def read_by_first_output(m):
    """Different slots of 768 inputs; the array has room for 230 that start a row of a tile."""
    rows = np.arange(m.tile[0]) * m.tile[1]
    return np.unique(m.starts(np.arange(m.grid[0]), np.int64(0))[:, None] + rows).size


def test_coefficients_that_let_tiles_coincide_are_not_taken():
    """With them an output sees sums of few inputs, or outputs are equal."""
    drawn = [draw_mapping((768, 768), 29_568, [seed], rows=False) for seed in range(100)]
    assert {m.tile for m in drawn} == {(32, 128)}
    assert min(read_by_first_output(m) for m in drawn) > 150
    assert min(np.unique(m.starts(np.int64(0), np.arange(6))).size for m in drawn) > 3
    first = (families.roast((768, 768), 29_568, seed=k, tile=(32, 128), align=128) for k in range(1000))
    assert min(read_by_first_output(m) for m in first) < 70


@pytest.mark.parametrize("ratio", [1, 100, 1e4, 1e9])
def test_a_tiny_array_is_legal(ratio):
    compressed = compress(mlp(40, 60), ratio)
    assert compressed(torch.ones(2, 40)).isfinite().all()
    assert arrays(compressed)[0].numel() >= 1


@pytest.mark.parametrize("local", [False, True])
def test_ratio_1_keeps_every_bit(local):
    dense = mixed()
    with torch.no_grad():
        dense.lstm.weight_hh_l0.mul_(1e-3)
    compressed = compress(dense, 1, local=local)
    assert all(torch.equal(w(), target) for w, target in pairs(compressed, dense))
    torch.testing.assert_close(compressed(IDS), dense(IDS))


def test_the_error_grows_with_the_ratio():
    dense = mlp(64, 64, 64)
    errors = [mean_error(compress(dense, ratio), dense) for ratio in (1, 1.1, 1.5, 2, 4, 20, 50)]
    assert errors == sorted(errors)
    assert errors[0] == 0
    assert errors[1] < 0.11
    assert errors[-1] < 1.8


def test_a_float16_array_at_ratio_1_rounds_and_no_more():
    dense = mixed()
    for w, target in pairs(compress(dense, 1, memory_dtype=torch.float16), dense):
        assert ((w() - target).abs() <= 2.0**-11 * target.abs() + 2.0**-25).all()


def test_tied_weights_stay_one():
    compressed = compress(mixed(), 20)
    found = virtual_weights(compressed)
    assert found["embedding.weight"] is found["head.weight"]
    assert torch.equal(compressed.embedding.weight, compressed.head.weight)
    assert not found["embedding.weight"].mapping.transposed
    assert not compressed.embedding(torch.tensor([0])).any()
    twin = copy.deepcopy(compressed)
    assert virtual_weights(twin)["embedding.weight"] is virtual_weights(twin)["head.weight"]
    assert torch.equal(twin(IDS), compressed(IDS))


def test_a_module_used_twice_stays_one():
    layer = seeded(lambda: nn.Linear(50, 50))
    compressed = compress(nn.Sequential(layer, nn.ReLU(), layer), 10)
    assert compressed[0] is compressed[2]
    assert set(virtual_weights(compressed)) == {"0.weight", "2.weight"}
    assert compressed(torch.ones(1, 50)).shape == (1, 50)


def test_one_parameter_under_two_names_of_a_module_has_both():
    module = nn.ParameterDict({"a": nn.Parameter(torch.ones(50, 60))})
    module.register_parameter("b", module["a"])
    found = virtual_weights(compress(module, 10))
    assert set(found) == {"a", "b"}
    assert found["a"] is found["b"]


def test_local_arrays():
    ratio = 20
    model = mixed()
    compressed = compress(model, ratio, local=True)
    weights = {id(w): w for w in virtual_weights(compressed).values()}
    assert len(arrays(compressed)) == len(weights) == len(VIRTUAL_IN_MIXED) - 1
    for weight in weights.values():
        assert 0 <= weight.memory.numel() - weight.mapping.numel / ratio < 17
    assert len(arrays(compress(model, ratio))) == 1
    assert compressed(IDS).isfinite().all()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include": ["lstm.*"]}, {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}),
        ({"exclude": ["lstm.*"]}, {"embedding.weight", "head.weight", "attention.in_proj_weight"}),
        ({"include": ["lstm.*"], "exclude": ["*_hh_*"]}, {"lstm.weight_ih_l0"}),
        ({"include": ["head.weight"]}, {"embedding.weight", "head.weight"}),
        ({"exclude": ["head.weight"]}, VIRTUAL_IN_MIXED - {"embedding.weight", "head.weight"}),
        ({"include": ["*"]}, VIRTUAL_IN_MIXED),
        ({"include": ["*.weight"], "exclude": ["norm.weight"]}, {"embedding.weight", "head.weight"}),
    ],
    # A set prints in another order in every process, and both test workers must see the same names.
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_patterns(patterns, expected):
    dense = mixed()
    compressed = compress(dense, 20, **patterns)
    assert set(virtual_weights(compressed)) == expected
    kept = dict(compressed.named_parameters())
    for name, parameter in dense.named_parameters():
        if name not in expected:
            assert torch.equal(kept[name], parameter)


@pytest.mark.parametrize("patterns", [{"include": ["lstm.*", "nothing*"]}, {"exclude": ["nothing*"]}])
def test_a_pattern_that_fits_nothing_is_refused(patterns):
    with pytest.raises(
        InputError, match=r"'nothing\*' fits no parameter; names look like 'embedding.weight'"
    ):
        compress(mixed(), 20, **patterns)


@pytest.mark.parametrize(
    ("min_params", "expected"), [(2500, {"0.weight"}), (2000, {"0.weight", "1.weight"}), (2001, {"0.weight"})]
)
def test_min_params(min_params, expected):
    assert set(virtual_weights(compress(mlp(50, 50, 40), 10, min_params=min_params))) == expected


def test_biases_norms_and_zeros_stay():
    model = nn.ModuleDict({"norm": nn.LayerNorm(5000), "fc": mlp(50, 60)[0], "zero": nn.Linear(50, 60)})
    nn.init.zeros_(model["zero"].weight)
    assert set(virtual_weights(compress(model, 10, min_params=1))) == {"fc.weight"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.99}, "ratio 0.99 must be at least 1"),
        ({"ratio": 0}, "must be at least 1"),
        ({"ratio": -100}, "must be at least 1"),
        ({"ratio": math.nan}, "must be at least 1"),
        ({"ratio": 10, "init": "random"}, "'project' or 'fresh'"),
        ({"ratio": 10, "min_params": 10**9}, "lower min_params"),
        ({"ratio": 10, "exclude": ["*"]}, "change the patterns"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        compress(mixed(), **arguments)


def test_compressing_twice_is_refused():
    with pytest.raises(InputError, match="compressed already"):
        compress(compress(mixed(), 20), 20)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(bad):
    model = mlp(50, 60, 70)
    with torch.no_grad():
        model[1].weight[3, 4] = bad
    with pytest.raises(RoastError, match=r"1\.weight"):
        compress(model, 10)


def test_weights_far_below_one_keep_their_size():
    model = mlp(50, 60)
    with torch.no_grad():
        model[0].weight.mul_(1e-25)
    for ratio in (1, 1.5, 20):
        weight = compress(model, ratio)[0].weight.double()
        assert float((weight.norm() / model[0].weight.double().norm()).detach()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_a_float16_array_holds_weights_of_any_size(factor):
    """The scale carries the size, so that the array stays where float16 is exact to 11 bits."""
    model = mlp(50, 60)
    with torch.no_grad():
        model[0].weight.mul_(factor)
    full, half = (compress(model, 5, memory_dtype=dtype) for dtype in (torch.float32, torch.float16))
    size = full[0].weight.abs().max()
    assert (full[0].weight - half[0].weight).abs().max() < 2**-10 * size


def test_a_bag_of_maxima_stays_one():
    model = nn.Sequential(seeded(lambda: nn.EmbeddingBag(100, 64, mode="max")), mlp(64, 64)[0])
    compressed, ids = compress(model, 2), torch.arange(12).view(3, 4)
    table = compressed[0].weight
    assert torch.equal(compressed[0](ids), table[ids].amax(1))


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_with_max_norm_stays_dense(layer):
    model = nn.Sequential(seeded(lambda: layer(100, 64, max_norm=0.5)), mlp(64, 64)[0])
    compressed = compress(model, 2)
    assert set(virtual_weights(compressed)) == {"1.weight"}
    assert compressed[0](torch.arange(12).view(12, 1)).norm(dim=-1).max() < 0.5001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype_of_the_array(dtype):
    compressed = compress(mixed(), 20, memory_dtype=dtype)
    (memory,) = arrays(compressed)
    assert memory.dtype == dtype
    assert {w().dtype for w in virtual_weights(compressed).values()} == {torch.float32}
    y = compressed(IDS)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert memory.grad.dtype == dtype
    assert memory.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_that_no_runtime_reads_are_refused(dtype):
    with pytest.raises(InputError, match="must be float32 or float16"):
        compress(mixed(), 20, memory_dtype=dtype)


def test_one_pattern_may_be_a_bare_string():
    assert set(virtual_weights(compress(mlp(64, 64), 4, include="0.*"))) == {"0.weight"}


def test_frozen_parameters_stay_frozen():
    assert not any(p.requires_grad for p in compress(mlp(64, 64).requires_grad_(False), 4).parameters())


def test_padding_row_with_values_keeps_them():
    table = nn.Embedding(100, 64, padding_idx=3)
    assert not compress(nn.Sequential(table), 4)(torch.tensor([3])).any()
    with torch.no_grad():
        table.weight[3] = 1.0
    assert compress(nn.Sequential(table), 4)(torch.tensor([3])).any()


def test_a_float16_array_is_the_rounded_float32_array():
    dense = mixed()
    full, half = (compress(dense, 20, memory_dtype=dtype) for dtype in (torch.float32, torch.float16))
    for name, weight in virtual_weights(full).items():
        assert virtual_weights(half)[name].mapping == weight.mapping
        torch.testing.assert_close(virtual_weights(half)[name](), weight(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("ratio", [2, 20])
def test_projection_is_nearer_than_a_fresh_start(ratio, local):
    dense = mixed()
    projected, fresh = (
        mean_error(compress(dense, ratio, init=init, local=local), dense) for init in ("project", "fresh")
    )
    assert projected < fresh - 0.3


@pytest.mark.parametrize("memory_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("ratio", [1, 1.5, 20, 200])
def test_projection_keeps_the_size_of_each_weight(ratio, local, memory_dtype):
    dense = mixed()
    with torch.no_grad():
        dense.lstm.weight_hh_l0.mul_(10)
    found = pairs(compress(dense, ratio, local=local, memory_dtype=memory_dtype), dense)
    sizes = [
        float(w().detach().square().mean().sqrt() / target.square().mean().sqrt()) for w, target in found
    ]
    assert sizes == pytest.approx([1.0] * len(found), rel=1e-3)


def test_nearest_weights_would_be_small():
    """The control of the test above: least squares alone loses most of the size."""
    dense = mixed()
    found = pairs(nearest(dense, 20), dense)
    sizes = [
        float(w().detach().square().mean().sqrt() / target.square().mean().sqrt()) for w, target in found
    ]
    assert max(sizes) < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_a_minimum_over_the_array(seed):
    dense = mixed()
    compressed = nearest(dense, 20, seed=seed)
    (memory,) = arrays(compressed)
    best = mean_error(compressed, dense)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-2, 1e-3):
        step = torch.randn(memory.shape, generator=generator) * size
        for sign in (1, -1):
            with torch.no_grad():
                memory.add_(sign * step)
                assert mean_error(compressed, dense) > best
                memory.sub_(sign * step)


def test_projection_has_no_gradient_left():
    dense = mixed()
    compressed = nearest(dense, 20)
    (memory,) = arrays(compressed)
    (gradient,) = torch.autograd.grad(relative_error(compressed, dense), memory)
    size = sum(w().square().sum() / target.square().mean() for w, target in pairs(compressed, dense))
    (control,) = torch.autograd.grad(size, memory)
    assert gradient.abs().max() < 1e-4 * control.abs().max()


def test_a_model_that_is_virtual_already_is_found_again():
    """Weights that an array can express come back, from the same maps only."""
    teacher = compress(mlp(64, 64, 64), 8, seed=5)
    dense = mlp(64, 64, 64)
    with torch.no_grad():
        for name, weight in virtual_weights(teacher).items():
            dense.get_parameter(name).copy_(weight())
    found, missed = (mean_error(compress(dense, 8, seed=seed), dense) for seed in (5, 6))
    assert found < 1e-4
    assert missed > 0.5


def test_fresh_keeps_the_size_of_each_weight():
    dense = mlp(100, 300, 50)
    with torch.no_grad():
        dense[0].weight.mul_(10)
    compressed = compress(dense, 10, init="fresh")
    for name, weight in virtual_weights(compressed).items():
        ratio = float((weight().square().mean() / dense.get_parameter(name).square().mean()).detach())
        assert 0.6 < ratio < 1.6


@pytest.mark.parametrize("init", ["project", "fresh"])
def test_a_seed_decides_everything(init):
    dense = mixed()
    first, again, other = (compress(dense, 20, seed=seed, init=init) for seed in (1, 1, 2))
    assert same(values(first), values(again))
    mappings = [[w.mapping for w in virtual_weights(model).values()] for model in (first, again, other)]
    assert mappings[0] == mappings[1]
    assert not any(a == b for a, b in zip(mappings[0], mappings[2], strict=True))
    assert not torch.equal(arrays(first)[0], arrays(other)[0])


def test_layers_of_one_shape_have_maps_of_their_own():
    compressed = compress(mlp(64, 64, 64, 64), 20)
    hashes = {(w.mapping.hash1, w.mapping.sign_hash) for w in virtual_weights(compressed).values()}
    assert len(hashes) == 3
    assert all(w.mapping.sign is Sign.TILE for w in virtual_weights(compressed).values())


def test_starts_lie_on_cache_lines():
    for weight in virtual_weights(compress(mixed(), 5)).values():
        assert weight.mapping.align % 16 == 0
        assert weight.mapping.n_memory % weight.mapping.align == 0
        assert weight.mapping.spill == 0


@pytest.mark.parametrize("local", [False, True])
def test_scale_gradients_divides_by_the_squared_scales_of_the_readers(local):
    compressed = compress(mixed(), 20, local=local)
    scaled = copy.deepcopy(compressed)
    handles = scale_gradients(scaled)
    for model in (compressed, scaled):
        model(IDS).square().sum().backward()
    for plain, memory in zip(arrays(compressed), arrays(scaled), strict=True):
        readers = {id(w): w for w in virtual_weights(scaled).values() if w.memory is memory}.values()
        density = np.zeros(memory.numel())
        for w in readers:
            density += w.scale**2 * np.bincount(w.mapping.indices().ravel(), minlength=memory.numel())
        read = torch.from_numpy(density > 0)
        expected = plain.grad.double() / torch.from_numpy(density).clamp(min=1e-12)
        torch.testing.assert_close(memory.grad.double()[read], expected[read], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(memory.grad, plain.grad)
    assert len(handles) == len(arrays(scaled))
    for handle in handles:
        handle.remove()
    scaled.zero_grad()
    scaled(IDS).square().sum().backward()
    for plain, memory in zip(arrays(compressed), arrays(scaled), strict=True):
        assert torch.equal(plain.grad, memory.grad)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
@pytest.mark.parametrize("scaled", [False, True])
def test_any_optimiser_trains_a_compressed_model(optimiser, scaled):
    x = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    y = x[:, :3].sin()
    model = seeded(lambda: nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Linear(60, 3)))
    compressed = compress(model, 5, init="fresh", min_params=100)
    if scaled:
        scale_gradients(compressed)
    options = {torch.optim.SGD: {"lr": 0.2}, torch.optim.AdamW: {"lr": 0.01}, torch.optim.LBFGS: {}}
    steps = optimiser(compressed.parameters(), **options[optimiser])

    def loss():
        steps.zero_grad()
        error = (compressed(x) - y).square().mean()
        error.backward()
        return error.detach()

    before = float(loss())
    for _ in range(10):
        steps.step(loss)
    assert float(loss()) < 0.9 * before


def test_state_dict_carries_a_trained_model():
    trained, fresh = compress(mixed(), 20, seed=1), compress(mixed(), 20, seed=2)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.eval()(IDS), trained.eval()(IDS))
    with pytest.raises(RoastError, match="same ratio"):
        compress(mixed(), 10).load_state_dict(trained.state_dict())
    with pytest.raises(RuntimeError):
        mixed().load_state_dict(trained.state_dict())


def test_a_compressed_model_is_traced_with_its_dynamic_batch():
    compressed = compress(mixed(), 20).eval()
    dynamic = {"ids": {0: torch.export.Dim("batch")}}
    program = torch.export.export(compressed, (IDS,), dynamic_shapes=dynamic)
    with torch.no_grad():
        for ids in (IDS, IDS[:1], IDS.repeat(4, 1)):
            torch.testing.assert_close(program.module()(ids), compressed(ids))
    smallest = min(w.mapping.numel for w in virtual_weights(compressed).values())
    assert max(x.numel() for x in program.state_dict.values()) < smallest


def test_torch_compile_runs_a_compressed_model():
    """Without code generation, which would need a compiler: graph capture and autograd."""
    model = compress(mlp(50, 60, 20), 10, min_params=100)
    fast = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x), model(x))
    for net in (fast, model):
        net(x).square().sum().backward()
    for p, q in zip(fast.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_the_call_after_a_training_step_sees_the_new_array():
    model = compress(mlp(50, 60), 10)
    before = model(torch.ones(1, 50))
    before.sum().backward()
    with torch.no_grad():
        arrays(model)[0].sub_(arrays(model)[0].grad)
    assert not torch.equal(model(torch.ones(1, 50)), before)
