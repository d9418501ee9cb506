"""Models of float16 and bfloat16: their weights are rounded after the mapping gave them."""

import copy
import pickle

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from roast_export import compress, create_session, export, summary
from roast_export.errors import ExportError, InputError
from roast_export.fit import relative_errors
from roast_export.modules import virtual_weights

IDS = torch.tensor([[0, 3, 59, 5, 2], [1, 1, 0, 0, 7]])
NARROW = [torch.float16, torch.bfloat16]
STEP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


class Net(nn.Module):
    """A table, a bag, a convolution, a recurrent layer and a product."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 64, padding_idx=0)
        self.bag = nn.EmbeddingBag(60, 64, mode="mean")
        self.conv = nn.Conv1d(64, 64, 3, padding=1)
        self.norm = nn.LayerNorm(64)
        self.lstm = nn.LSTM(64, 32, batch_first=True)
        self.head = nn.Linear(32, 64)

    def forward(self, ids):
        x = self.conv(self.table(ids).mT).mT + self.bag(ids).unsqueeze(1)
        return self.head(self.lstm(self.norm(x))[0])


def net(dtype):
    torch.manual_seed(0)
    return Net().eval().to(dtype)


def arrays(model):
    return list({id(w.memory): w.memory for w in virtual_weights(model).values()}.values())


@pytest.mark.parametrize("dtype", NARROW)
def test_at_ratio_1_no_bit_changes(dtype):
    dense = net(dtype)
    compressed = compress(dense, 1, min_params=500)
    weights = virtual_weights(compressed)
    assert len(weights) == 6
    assert all(torch.equal(weight(), dense.get_parameter(name)) for name, weight in weights.items())
    assert set(relative_errors(compressed).values()) == {0.0}
    expected, found = dense(IDS), compressed(IDS)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * STEP[dtype])


@pytest.mark.parametrize("dtype", NARROW)
def test_the_weight_is_the_mappings_rounded_once(dtype):
    for weight in virtual_weights(compress(net(dtype), 8, min_params=500)).values():
        exact = weight.mapping.weight(weight.memory.detach().float().numpy(), weight.scale)
        assert torch.equal(weight(), torch.from_numpy(exact).to(dtype))


def test_the_array_is_float16_for_float16_models_only():
    for dtype, given, expected in [
        (torch.float32, None, torch.float32),
        (torch.float16, None, torch.float16),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.bfloat16, torch.float16, torch.float16),
    ]:
        compressed = compress(net(dtype), 8, min_params=500, memory_dtype=given)
        assert [memory.dtype for memory in arrays(compressed)] == [expected]
        assert {weight().dtype for weight in virtual_weights(compressed).values()} == {dtype}


def test_a_model_of_two_dtypes_keeps_them():
    model = nn.Sequential(nn.Linear(64, 64).half(), nn.Linear(64, 64))
    compressed = compress(model, 4)
    assert [layer.weight.dtype for layer in compressed] == [torch.float16, torch.float32]
    assert [memory.dtype for memory in arrays(compressed)] == [torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_with_what_to_do(dtype):
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(InputError, match=r"0\.weight is torch\.\w+; compress model\.float"):
        compress(model, 4)


@pytest.mark.parametrize("dtype", NARROW)
def test_gradients_reach_the_array_through_every_layer(dtype):
    dense = net(dtype)
    compressed = compress(dense, 1, min_params=500)
    for model in (dense, compressed):
        model.train()(IDS).float().square().sum().backward()
    (memory,) = arrays(compressed)
    assert memory.grad.dtype == memory.dtype
    for name, weight in virtual_weights(compressed).items():
        expected = dense.get_parameter(name).grad.float()
        slots = torch.from_numpy(weight.mapping.indices())
        found = memory.grad.float()[slots] / weight.scale
        error = (found - expected).norm() / expected.norm()
        assert error < 0.05, name
        assert expected.any()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_training_step_lowers_the_loss(dtype):
    compressed = compress(net(dtype), 4, min_params=500, memory_dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(compressed.parameters(), lr=1e-2, eps=1e-4)
    losses = []
    for _ in range(8):
        loss = (compressed(IDS).float() - 0.3).square().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", NARROW)
def test_copies_pickles_and_state_dicts_keep_the_dtype(dtype):
    compressed = compress(net(dtype), 8, min_params=500)
    expected = compressed(IDS)
    for again in (copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed))):
        assert torch.equal(again(IDS), expected)
    other = compress(net(dtype), 8, min_params=500, seed=1)
    assert not torch.equal(other(IDS), expected)
    other.load_state_dict(compressed.state_dict())
    assert torch.equal(other(IDS), expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_compressed_model_converts_as_a_dense_one_does(dtype):
    compressed = compress(net(torch.float32), 8, min_params=500)
    expected, (memory,) = compressed(IDS), arrays(compressed)
    before = memory.detach().clone()
    narrow = copy.deepcopy(compressed).to(dtype)
    assert narrow(IDS).dtype == dtype
    torch.testing.assert_close(narrow(IDS).float(), expected, rtol=0, atol=4 * STEP[dtype])
    (array,) = arrays(narrow)
    assert array.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    back = narrow.float()
    assert back(IDS).dtype == torch.float32
    if dtype == torch.bfloat16:
        assert torch.equal(arrays(back)[0], before)
    assert copy.deepcopy(compressed).double()(IDS).dtype == torch.float64
    assert compressed.to("meta")(IDS.to("meta")).dtype == torch.float32


def test_summary_counts_what_the_model_was():
    """Of a bfloat16 model each dense weight had two bytes."""
    full, narrow = (
        summary(compress(net(dtype), 8, min_params=500)) for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.dense_bytes == full.dense_bytes // 2


def test_onnx_of_float16_runs_in_float16(tmp_path):
    compressed = compress(net(torch.float16), 8, min_params=500)
    export(compressed, tmp_path / "m.onnx", example_inputs=(IDS,), verify=False)
    (found,) = create_session(tmp_path / "m.onnx").run(None, {"ids": IDS.numpy()})
    assert found.dtype == np.float16
    expected = compressed(IDS).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * STEP[torch.float16])
    assert np.abs(expected).max() > 100 * STEP[torch.float16]


def test_onnx_of_bfloat16_names_the_way_that_works(tmp_path):
    compressed = compress(net(torch.bfloat16), 8, min_params=500)
    with pytest.raises(ExportError, match=r"in bfloat16.*model\.float\(\) instead"):
        export(compressed, tmp_path / "m.onnx", example_inputs=(IDS,))
    assert not list(tmp_path.iterdir())
    expected = compressed(IDS).detach().float()
    assert export(compressed.float(), tmp_path / "m.onnx", example_inputs=(IDS,)).passed
    (found,) = create_session(tmp_path / "m.onnx").run(None, {"ids": IDS.numpy()})
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * STEP[torch.bfloat16])


class Reductions(nn.Module):
    """Each is an output as it comes, and one goes on into a product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.layer(x)
        total = y.sum(1)
        others = y.sum(), y.prod(-1), y.amax(1), y.amin(1), y.cumsum(1)
        return total, self.layer(total), *others, y.sum(1, dtype=torch.float32)


def test_reductions_of_float16_stay_float16(tmp_path):
    torch.manual_seed(0)
    model = compress(Reductions().half().eval(), 4, min_params=64)
    path = tmp_path / "m.onnx"
    report = export(
        model, path, example_inputs=(torch.randn(3, 4, 32).half(),), dynamic_shapes={"x": {0: "batch"}}
    )
    assert report.passed
    kinds = [value.type.tensor_type.elem_type for value in onnx.load(path).graph.output]
    assert kinds == [onnx.TensorProto.FLOAT16] * 7 + [onnx.TensorProto.FLOAT]
