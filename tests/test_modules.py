"""Each Roast* class against the ordinary torch layer that is given the same expanded weight."""

import copy
import io
import pickle
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn

from roast_export import (
    RoastConv1d,
    RoastConv2d,
    RoastEmbedding,
    RoastEmbeddingBag,
    RoastLinear,
    VirtualWeight,
    families,
    make_virtual,
    torch_ops,
)
from roast_export.errors import InputError, MappingError
from roast_export.modules import virtual_weights

N_MEMORY = 320
ROWS, DIM = 11, 24


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def array(dtype=torch.float32):
    return nn.Parameter(random(N_MEMORY, seed=7).to(dtype))


def virtual(*shape, memory=None, scale=0.5, rows=False, seed=3):
    tile = (1, 16) if rows else (8, 16)
    mapping = families.roast(shape, N_MEMORY, seed=seed, tile=tile, align=16, transposed=not rows)
    return VirtualWeight(array() if memory is None else memory, mapping, scale)


def randomise(module):
    """Values for the parameters that the constructors leave at zero."""
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=k + 20))
    return module


def dense_twin(roast, dense):
    """`dense` with the parameters of `roast`, virtual ones expanded."""
    ordinary = {name: p.detach().clone() for name, p in roast.named_parameters() if "virtual" not in name}
    expanded = {name: weight().detach().clone() for name, weight in virtual_weights(roast).items()}
    dense.load_state_dict({**ordinary, **expanded})
    return dense


def compare(roast, dense, *inputs, exact=True, **named):
    """Outputs, and the gradients of inputs, of ordinary parameters and of the array."""
    copies = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    twins = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    # The library adds in another order: equal bits are a promise of the aten form only.
    with torch_ops.without_library() if exact else nullcontext():
        got = roast(*copies, **named)
    outputs, references = flatten(got), flatten(dense(*twins, **named))
    for output, reference in zip(flatten(roast(*inputs, **named)), references, strict=True):
        torch.testing.assert_close(output, reference)
    assert len(outputs) == len(references)
    for output, reference in zip(outputs, references, strict=True):
        if exact:
            assert torch.equal(output, reference)
        else:
            torch.testing.assert_close(output, reference)
    for results in (outputs, references):
        sum((random(*y.shape, seed=9).to(y.dtype) * y).sum() for y in results).backward()
    for x, twin in zip(copies, twins, strict=True):
        torch.testing.assert_close(x.grad, twin.grad)
    gradients = {name: p.grad for name, p in dense.named_parameters()}
    for name, parameter in roast.named_parameters():
        if "virtual" not in name:
            torch.testing.assert_close(parameter.grad, gradients[name])
    memory = next(iter(virtual_weights(roast).values())).memory
    through = torch.zeros(N_MEMORY, dtype=torch.float64)
    for name, weight in virtual_weights(roast).items():
        index, sign = (torch.from_numpy(x) for x in (weight.mapping.indices(), weight.mapping.signs()))
        share = weight.scale * sign * gradients[name].double()
        through.index_add_(0, index.flatten(), share.flatten())
    assert through.any()
    torch.testing.assert_close(memory.grad.double(), through, rtol=1e-4, atol=1e-4)


def flatten(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [y for item in value if item is not None for y in flatten(item)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_linear(bias, lead):
    roast = randomise(RoastLinear(virtual(20, DIM), bias=bias))
    assert (roast.in_features, roast.out_features, roast.bias is not None) == (DIM, 20, bias)
    compare(roast, dense_twin(roast, nn.Linear(DIM, 20, bias=bias)), random(*lead, DIM))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"groups": 2, "stride": 2},
        {"dilation": 2, "padding": 3},
        {"padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_conv1d(options):
    groups = options.get("groups", 1)
    roast = randomise(RoastConv1d(virtual(12, 6, 5), **options))
    compare(roast, dense_twin(roast, nn.Conv1d(6 * groups, 12, 5, **options)), random(2, 6 * groups, 19))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"groups": 3, "stride": (2, 1), "padding": (1, 2)},
        {"dilation": (2, 1)},
        {"padding": (1, 0)},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_conv2d(options):
    groups = options.get("groups", 1)
    roast = randomise(RoastConv2d(virtual(6, 4, 3, 2), **options))
    dense = dense_twin(roast, nn.Conv2d(4 * groups, 6, (3, 2), **options))
    compare(roast, dense, random(2, 4 * groups, 9, 8))


IDS = torch.tensor([[0, 3, 3, 10], [4, 0, 7, 0], [10, 10, 1, 2]])


def dense_embedding(roast, cls, zero_padding, **options):
    """A torch embedding; nn.Embedding's own padding row is zero, ours must read so."""
    dense = dense_twin(roast, cls(ROWS, DIM, **options))
    if zero_padding and options.get("padding_idx") is not None:
        with torch.no_grad():
            dense.weight[options["padding_idx"]] = 0
    return dense


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -1])
@pytest.mark.parametrize("ids", [IDS, IDS.int(), IDS[0], IDS[0, 0], IDS[:0]], ids=lambda x: str(x.shape))
def test_embedding(padding_idx, ids):
    roast = RoastEmbedding(virtual(ROWS, DIM, rows=True), padding_idx=padding_idx)
    dense = dense_embedding(roast, nn.Embedding, True, padding_idx=padding_idx)
    assert roast.padding_idx == dense.padding_idx
    assert torch.equal(roast(ids), dense(ids))
    if ids.shape == IDS.shape:
        compare(roast, dense, ids)


def test_padding_rows_are_zero_and_untrained():
    roast = RoastEmbedding(virtual(ROWS, DIM, rows=True), padding_idx=3)
    rows = roast(torch.tensor([3, 4, 3]))
    assert not rows[[0, 2]].any()
    assert rows[1].any()
    roast(torch.full((5,), 3)).sum().backward()
    assert not next(roast.parameters()).grad.any()


def test_control_without_padding_idx_the_row_is_not_zero():
    assert RoastEmbedding(virtual(ROWS, DIM, rows=True))(torch.tensor([3])).any()


@pytest.mark.parametrize("wrong", [-1, ROWS])
def test_an_embedding_refuses_an_id_outside_its_table(wrong):
    with pytest.raises(IndexError):
        RoastEmbedding(virtual(ROWS, DIM, rows=True))(torch.tensor([wrong]))


OFFSETS = torch.tensor([0, 0, 4, 9])
"""Empty bags at the start; and a last bag that ends with the ids."""


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_of_rows(mode, padding_idx):
    options = {"mode": mode, "padding_idx": padding_idx}
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), **options)
    compare(roast, dense_embedding(roast, nn.EmbeddingBag, False, **options), IDS, exact=False)


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("offsets", [OFFSETS, OFFSETS.clamp(max=4), torch.tensor([0]), torch.tensor([0, 12])])
def test_bag_with_offsets(mode, include_last_offset, padding_idx, offsets):
    options = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": include_last_offset}
    if include_last_offset:
        offsets = torch.cat((offsets[offsets < 12], torch.tensor([12])))
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), **options)
    dense = dense_embedding(roast, nn.EmbeddingBag, False, **options)
    compare(roast, dense, IDS.flatten(), exact=False, offsets=offsets)


def test_no_bags():
    ids, none = torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)
    assert RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), mode="sum")(ids, none).shape == (0, DIM)
    options = {"mode": "mean", "include_last_offset": True}
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), **options)
    assert roast(ids, torch.tensor([0])).shape == (0, DIM)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_ids_after_the_last_offset_belong_to_no_bag(mode):
    """Here as if they were not given. torch 2.13 divides by their number, and has no gradient for them."""
    options = {"mode": mode, "include_last_offset": True}
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), **options)
    dense = dense_embedding(roast, nn.EmbeddingBag, False, **options)
    ids, offsets = IDS.flatten(), torch.tensor([0, 5, 9])
    torch.testing.assert_close(roast(ids, offsets), dense(ids[:9], offsets))
    memory = roast.virtual["weight"].memory
    gradients = [torch.autograd.grad(roast(x, offsets).sum(), memory)[0] for x in (ids, ids[:9])]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_bag_with_weights(offsets, padding_idx):
    options = {"mode": "sum", "padding_idx": padding_idx}
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), **options)
    dense = dense_embedding(roast, nn.EmbeddingBag, False, **options)
    ids, weights = (IDS, random(3, 4)) if offsets is None else (IDS.flatten(), random(12))
    pairs = [weights.clone().requires_grad_() for _ in range(2)]
    outputs = [bag(ids, offsets, per_sample_weights=w) for bag, w in zip((roast, dense), pairs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(pairs[0].grad, pairs[1].grad)


def test_an_empty_bag_is_zero():
    for mode in ("sum", "mean"):
        roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), mode=mode, padding_idx=0)
        assert not roast(torch.tensor([1, 2]), torch.tensor([0, 2]))[1].any()
        assert not roast(torch.tensor([[0, 0]])).any()


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        ("mean", (IDS, None, torch.ones(3, 4)), "mode 'sum'"),
        ("sum", (IDS[0],), "with offsets"),
        ("sum", (IDS, OFFSETS), "alone"),
        ("sum", (IDS[None],), "alone"),
    ],
)
def test_a_bag_refuses_what_torch_refuses(mode, arguments, message):
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), mode=mode)
    with pytest.raises(InputError, match=message):
        roast(*arguments)
    with pytest.raises((ValueError, NotImplementedError)):
        nn.EmbeddingBag(ROWS, DIM, mode=mode)(*arguments)


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_a_bag_of_maxima(offsets):
    ids = IDS if offsets is None else IDS.flatten()
    roast = RoastEmbeddingBag(virtual(ROWS, DIM, rows=True), mode="max")
    dense = dense_embedding(roast, nn.EmbeddingBag, False, mode="max")
    torch.testing.assert_close(roast(ids, offsets), dense(ids, offsets))


@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_that_renormalises_its_rows_is_refused(cls):
    """Renormalising writes to the table, which is not there."""
    with pytest.raises(InputError, match="max_norm"):
        make_virtual(cls(ROWS, DIM, max_norm=0.1), {"weight": virtual(ROWS, DIM, rows=True)})


DOUBLES = {
    "linear": (lambda w: RoastLinear(w(6, 5)), (3, 5)),
    "conv1d": (lambda w: RoastConv1d(w(4, 2, 3)), (2, 2, 5)),
    "conv2d": (lambda w: RoastConv2d(w(4, 2, 2, 2), groups=2), (1, 4, 3, 3)),
}


@pytest.mark.parametrize("name", DOUBLES)
def test_gradcheck_of_layers(name):
    build, shape = DOUBLES[name]
    memory = array(torch.float64)
    layer = randomise(build(lambda *s: virtual(*s, memory=memory)).double())
    x = random(*shape, dtype=torch.float64).requires_grad_()
    names = [key for key, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("mode", [None, "sum", "mean"])
def test_gradcheck_of_embeddings(mode):
    weight = virtual(ROWS, DIM, memory=array(torch.float64), rows=True)
    layer = (
        RoastEmbedding(weight, padding_idx=0)
        if mode is None
        else RoastEmbeddingBag(weight, mode=mode, padding_idx=0)
    )

    def run(memory):
        return torch.func.functional_call(layer, {"virtual.weight.memory": memory}, (IDS,))

    assert torch.autograd.gradcheck(run, (weight.memory,))


def generalise(dense, names, memory=None):
    """`dense` itself, its parameters `names` virtual; and an untouched copy with their values."""
    twin = copy.deepcopy(dense)
    memory = array() if memory is None else memory
    weights = {
        name: virtual(*getattr(dense, name).shape, memory=memory, scale=0.1 * (k + 1), seed=k)
        for k, name in enumerate(names)
    }
    roast = make_virtual(dense, weights)
    assert roast is dense
    return roast, dense_twin(roast, twin)


def recurrent_names(layer):
    return [name for name, parameter in layer.named_parameters() if parameter.dim() == 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(cls, options):
    dense = cls(10, 12, **options)
    roast, twin = generalise(dense, recurrent_names(dense))
    assert isinstance(roast, cls)
    compare(roast, twin, random(4, 3, 10), exact=False)


def test_lstm_with_projection_and_states():
    dense = nn.LSTM(10, 12, proj_size=5)
    roast, twin = generalise(dense, recurrent_names(dense))
    x, states = random(4, 3, 10), (random(1, 3, 5, seed=1), random(1, 3, 12, seed=2))
    for got, expected in zip(flatten(roast(x, states)), flatten(twin(x, states)), strict=True):
        torch.testing.assert_close(got, expected)


def test_lstm_takes_packed_sequences():
    dense = nn.LSTM(10, 12)
    roast, twin = generalise(dense, recurrent_names(dense))
    packed = nn.utils.rnn.pack_padded_sequence(random(4, 3, 10), torch.tensor([4, 3, 1]))
    torch.testing.assert_close(roast(packed)[0].data, twin(packed)[0].data)


def test_lstm_with_some_weights_virtual():
    roast, twin = generalise(nn.LSTM(10, 12, num_layers=2), ["weight_hh_l0", "weight_ih_l1"])
    compare(roast, twin, random(4, 3, 10), exact=False)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_cells(cell):
    roast, twin = generalise(cell(10, 12), ["weight_ih", "weight_hh"])
    compare(roast, twin, random(3, 10), exact=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first, training):
    dense = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    roast, twin = generalise(dense, ["in_proj_weight"])
    x = random(3, 5, 16)
    compare(roast.train(training), twin.train(training), x, x, x, exact=False)


def test_multihead_attention_with_other_key_and_value_sizes():
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    roast, twin = generalise(nn.MultiheadAttention(16, 4, kdim=6, vdim=9), names)
    compare(roast, twin, random(3, 5, 16), random(4, 5, 6), random(4, 5, 9), exact=False)


def test_multihead_attention_without_gradients():
    """The case in which torch takes its fused path."""
    roast, twin = generalise(nn.MultiheadAttention(16, 4, batch_first=True).eval(), ["in_proj_weight"])
    x = random(3, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(roast(x, x, x)[0], twin(x, x, x)[0])


def test_transformer_layer_without_gradients():
    """The fused path of a whole layer reads the weights of its children without calling them."""
    dense = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True).eval()
    twin, memory = copy.deepcopy(dense), array()
    for module, name in ((dense.self_attn, "in_proj_weight"), (dense.linear1, "weight")):
        weight = virtual(*getattr(module, name).shape, memory=memory, seed=len(name))
        make_virtual(module, {name: weight})
    with torch.no_grad():
        twin.self_attn.in_proj_weight.copy_(dense.self_attn.in_proj_weight)
        twin.linear1.weight.copy_(dense.linear1.weight)
        x = random(3, 5, 16)
        fused, expected = dense(x), twin(x)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(dense(x), expected)


@pytest.mark.parametrize("layer", [nn.Bilinear(7, 9, 5), nn.ConvTranspose2d(4, 6, 3), nn.Conv3d(2, 4, 2)])
def test_any_other_layer(layer):
    shapes = {nn.Bilinear: [(3, 7), (3, 9)], nn.ConvTranspose2d: [(2, 4, 5, 6)], nn.Conv3d: [(1, 2, 3, 4, 5)]}
    inputs = [random(*shape) for shape in shapes[type(layer)]]
    roast, twin = generalise(copy.deepcopy(layer), ["weight"])
    compare(roast, twin, *inputs)


class Scaled(nn.Module):
    """A user's module that reads its parameter twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(random(6, 10))

    def forward(self, x):
        return x @ self.table @ self.table.T


def test_a_users_module_expands_its_weight_once_per_call():
    roast, twin = generalise(Scaled(), ["table"])
    calls = []
    handle = roast.virtual["table"].register_forward_hook(lambda *_: calls.append(1))
    compare(roast, twin, random(3, 6))
    calls.clear()
    roast(random(3, 6))
    assert len(calls) == 1
    roast(random(3, 6))
    assert len(calls) == 2
    handle.remove()


def test_a_module_that_fails_keeps_no_expanded_weight():
    roast, _ = generalise(nn.Linear(10, 6), ["weight"])
    with pytest.raises(RuntimeError):
        roast(random(3, 11))
    with torch.no_grad():
        before = roast(random(3, 10))
        next(iter(virtual_weights(roast).values())).memory.mul_(2)
        assert not torch.equal(roast(random(3, 10)), before)


def test_reading_the_weight_outside_a_call_is_never_stale():
    roast, _ = generalise(nn.Linear(10, 6), ["weight"])
    before = roast.weight.detach().clone()
    with torch.no_grad():
        roast.virtual["weight"].memory.mul_(2)
    torch.testing.assert_close(roast.weight, 2 * before)


class KeyValue(nn.Module):
    """Parameters with names that containers use themselves."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Parameter(random(6, 10))
        self.values = nn.Parameter(random(6, 10, seed=1))

    def forward(self, x):
        return (x @ self.keys.T) @ self.values


def test_parameters_may_be_called_keys_and_values():
    roast, twin = generalise(KeyValue(), ["keys", "values"])
    compare(roast, twin, random(3, 10))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        weight = virtual(ROWS, DIM, rows=True)
        self.embedding = RoastEmbedding(weight)
        self.head = RoastLinear(weight, bias=False)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def round_trip(model, how):
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = ["deepcopy", "pickle", "torch.save"]


@pytest.mark.parametrize("how", COPIES)
def test_copies_share_nothing_and_stay_tied(how):
    model = Tied()
    twin = round_trip(model, how)
    assert torch.equal(model(IDS), twin(IDS))
    assert twin.embedding.virtual["weight"] is twin.head.virtual["weight"]
    assert len(list(twin.parameters())) == 1
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert model(IDS).any()


def general_layers():
    return {
        "linear": (generalise(nn.Linear(10, 6), ["weight"])[0], (3, 10)),
        "conv": (RoastConv2d(virtual(6, 2, 3, 3), groups=2), (1, 4, 5, 5)),
        "lstm": (generalise(nn.LSTM(10, 12), ["weight_hh_l0", "weight_ih_l0"])[0], (4, 3, 10)),
        "user": (generalise(Scaled(), ["table"])[0], (3, 6)),
    }


@pytest.mark.parametrize(("how", "name"), list(product(COPIES, general_layers())))
def test_every_kind_of_layer_is_copied(how, name):
    layer, shape = general_layers()[name]
    twin = round_trip(layer, how)
    assert type(twin) is type(layer)
    x = random(*shape)
    for got, expected in zip(flatten(twin(x)), flatten(layer(x)), strict=True):
        assert torch.equal(got, expected)
    with torch.no_grad():
        next(iter(virtual_weights(twin).values())).memory.zero_()
    assert not torch.equal(flatten(twin(x))[0], flatten(layer(x))[0])


@pytest.mark.parametrize("name", general_layers())
def test_state_dict_round_trip(name):
    layer, shape = general_layers()[name]
    fresh, _ = general_layers()[name]
    randomise(layer)
    x = random(*shape)
    assert not torch.equal(flatten(layer(x))[0], flatten(fresh(x))[0])
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    assert fresh.load_state_dict(torch.load(stream, weights_only=True)) == ([], [])
    assert torch.equal(flatten(layer(x))[0], flatten(fresh(x))[0])


def test_a_state_dict_brings_its_mapping_and_scale():
    first = RoastLinear(virtual(20, DIM, seed=1, scale=0.5))
    second = RoastLinear(virtual(20, DIM, seed=2, scale=0.25))
    second.load_state_dict(first.state_dict())
    assert second.virtual["weight"].mapping == first.virtual["weight"].mapping
    assert torch.equal(second.weight, first.weight)


def other_length():
    mapping = families.roast((20, DIM), 640, seed=1, tile=(8, 16), align=16)
    return RoastLinear(VirtualWeight(nn.Parameter(torch.zeros(640)), mapping))


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (lambda: RoastLinear(virtual(DIM, 20)), InputError),
        (other_length, (InputError, RuntimeError)),
        (lambda: nn.Linear(DIM, 20), RuntimeError),
        (lambda: RoastLinear(virtual(20, DIM), bias=False), RuntimeError),
    ],
    ids=["shape", "array", "dense", "no bias"],
)
def test_a_wrong_state_dict_is_refused(other, error):
    layer = RoastLinear(virtual(20, DIM))
    with pytest.raises(error):
        layer.load_state_dict(other().state_dict())


def record_of(layer):
    return next((key, value) for key, value in layer.state_dict().items() if key.endswith("_extra_state"))


def test_a_state_dict_with_a_broken_record_is_refused():
    layer = RoastLinear(virtual(20, DIM))
    state, (key, record) = layer.state_dict(), record_of(layer)
    other_version, no_number = record.clone(), record.clone()
    other_version[1] = 2
    no_number[0] = torch.tensor([float("nan")], dtype=torch.float64).view(torch.int64)[0]
    with pytest.raises(MappingError, match="version 2"):
        layer.load_state_dict({**state, key: other_version})
    with pytest.raises(MappingError, match="finite"):
        layer.load_state_dict({**state, key: no_number})
    with pytest.raises(MappingError, match="float32"):
        layer.load_state_dict({**state, key: record.float()})


def test_a_state_dict_is_tensors_and_an_older_one_with_a_dict_is_read():
    first, second = RoastLinear(virtual(20, DIM, seed=1, scale=0.1)), RoastLinear(virtual(20, DIM, seed=2))
    state, (key, _) = first.state_dict(), record_of(first)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    fields = first.virtual["weight"].fields
    second.load_state_dict({**state, key: {"mapping": fields, "scale": 0.1}})
    assert second.virtual["weight"].scale == 0.1
    assert torch.equal(second.weight, first.weight)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39])
def test_a_scale_that_float32_cannot_hold_is_refused(scale):
    with pytest.raises(MappingError, match="finite float32"):
        virtual(20, DIM, scale=scale)


def test_an_array_of_another_length_is_refused():
    with pytest.raises(MappingError, match=r"shape \[319\], the mapping needs \[320\]"):
        virtual(20, DIM, memory=nn.Parameter(torch.zeros(N_MEMORY - 1)))


def test_make_virtual_refuses_a_wrong_shape_and_a_taken_name():
    with pytest.raises(MappingError, match="another shape"):
        make_virtual(nn.Linear(10, 6), {"weight": virtual(10, 6)})
    taken = nn.Linear(10, 6)
    taken.virtual = 1
    with pytest.raises(InputError, match="already has an attribute 'virtual'"):
        make_virtual(taken, {"weight": virtual(6, 10)})


def test_virtual_weights_are_named_after_the_parameters_they_replace():
    model = nn.ModuleDict({"tied": Tied(), "rnn": generalise(nn.GRU(10, 12), ["weight_hh_l0"])[0]})
    found = virtual_weights(model)
    assert list(found) == ["tied.embedding.weight", "tied.head.weight", "rnn.weight_hh_l0"]
    assert found["tied.embedding.weight"] is found["tied.head.weight"]
    assert list(virtual_weights(RoastLinear(virtual(20, DIM)))) == ["weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_array_gives_a_float32_layer(dtype):
    memory = array(dtype)
    layer = randomise(RoastLinear(virtual(20, DIM, memory=memory)))
    y = layer(random(3, DIM))
    assert y.dtype == torch.float32
    y.sum().backward()
    assert memory.grad.dtype == dtype
    expected = layer.virtual["weight"].mapping.weight(memory.detach().float().numpy(), 0.5)
    assert torch.equal(layer.weight, torch.from_numpy(expected))


def test_one_array_collects_the_gradients_of_all_its_layers():
    memory = array(torch.float64)
    layers = [RoastLinear(virtual(DIM, DIM, memory=memory, seed=k)).double() for k in range(2)]
    x = random(3, DIM, dtype=torch.float64)
    shares = [torch.autograd.grad(layer(x).square().sum(), memory)[0] for layer in layers]
    sum(layer(x).square().sum() for layer in layers).backward()
    torch.testing.assert_close(memory.grad, shares[0] + shares[1])


def test_layers_export_with_a_dynamic_batch():
    model = nn.Sequential(
        RoastEmbedding(virtual(ROWS, DIM, rows=True), padding_idx=0), RoastLinear(virtual(20, DIM))
    )
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (IDS,), dynamic_shapes={"input": {0: batch}})
    for ids in (IDS, IDS[:1], IDS.repeat(3, 1)):
        assert torch.equal(program.module()(ids), model(ids))


def test_meta_layers_allocate_no_dense_weight():
    """2^40 elements: building and running one row needs nothing but the array."""
    mapping = families.roast((1 << 36, 16), N_MEMORY, seed=1, tile=(1, 16), align=16, transposed=False)
    layer = RoastEmbedding(VirtualWeight(array(), mapping))
    assert layer(torch.tensor([0, (1 << 36) - 1])).shape == (2, 16)
