"""The torch twin of the mapping: golden vectors bit by bit, its gradients, what its dispatcher promises."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mappings import drawn, hashed, pattern
from torch import library
from vectors.make_vectors import GOLDEN, memory_of, sha256

from roast_export import families, torch_ops
from roast_export.mapping import Element, Hash, Mapping, Sign

VECTORS = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
TWO_DIMENSIONAL = [v for v in VECTORS if v["mapping"][31] == 2]
GRADIENT_MAPPINGS = {
    "row tiles": families.roast((9, 20), 64, seed=1, tile=(1, 16), align=16, transposed=False),
    "transposed tiles": families.roast((9, 20), 70, seed=1, tile=(4, 8), align=16),
    "wrapping": Mapping((5, 8), 40, (5, 8), tile=(1, 32), hash1=Hash(101, 3, 5, 7, 11), range=40),
    "mt19937 signs": families.fakeroast_hashednet((5, 8), 13, [5, 3, 7, 0], 4, sign_seed=3),
    "drawn": Mapping((5, 8), 30, (1, 40), element=Element.MT19937_64, range=1 << 29, seed=4),
}
mappings = pytest.mark.parametrize("mapping", GRADIENT_MAPPINGS.values(), ids=GRADIENT_MAPPINGS)


def bits(tensor: torch.Tensor) -> str:
    return sha256(tensor.detach().numpy())


def array(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return values.to(dtype).requires_grad_()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
@pytest.mark.parametrize(
    ("dtype", "digest"), [(torch.float32, "weight_sha256"), (torch.float16, "weight_half_sha256")]
)
def test_gather_gives_the_golden_bits(vector, dtype, digest):
    memory = torch.from_numpy(memory_of(vector["mapping"][3])).to(dtype)
    weight = torch_ops.gather(memory, vector["mapping"], vector["scale"])
    assert weight.dtype == torch.float32
    assert weight.is_contiguous()
    assert bits(weight) == vector[digest]


@pytest.mark.parametrize("vector", TWO_DIMENSIONAL, ids=lambda v: v["name"])
@pytest.mark.parametrize(
    ("dtype", "digest"), [(torch.float32, "weight_sha256"), (torch.float16, "weight_half_sha256")]
)
def test_embedding_of_every_row_gives_the_golden_bits(vector, dtype, digest):
    memory = torch.from_numpy(memory_of(vector["mapping"][3])).to(dtype)
    ids = torch.arange(vector["mapping"][32])
    rows = torch_ops.embedding(memory, ids, vector["mapping"], vector["scale"])
    assert rows.dtype == torch.float32
    assert bits(rows) == vector[digest]


@pytest.mark.parametrize("place", [15, 21, 22])
def test_control_another_record_gives_other_bits(place):
    vector = next(v for v in VECTORS if v["name"] == "roast as is, tile signs")
    fields = list(vector["mapping"])
    fields[place] -= 1
    memory = torch.from_numpy(memory_of(fields[3]))
    assert bits(torch_ops.gather(memory, fields, vector["scale"])) != vector["weight_sha256"]
    every_row = torch_ops.embedding(memory, torch.arange(fields[32]), fields, vector["scale"])
    assert bits(every_row) != vector["weight_sha256"]


@given(st.one_of(hashed(), drawn()), st.floats(-4, 4, width=32), st.sampled_from([np.float32, np.float16]))
@settings(deadline=None)
def test_gather_and_embedding_agree_with_the_reference(mapping, scale, dtype):
    memory = pattern(mapping.n_memory, dtype)
    expected = mapping.weight(memory, scale)
    weight = torch_ops.gather(torch.from_numpy(memory), mapping.to_list(), scale)
    assert weight.shape == expected.shape
    assert weight.numpy().tobytes() == expected.tobytes()
    if len(mapping.shape) == 2:
        ids = torch.arange(mapping.shape[0]).flip(0)
        rows = torch_ops.embedding(torch.from_numpy(memory), ids, mapping.to_list(), scale)
        assert rows.numpy().tobytes() == expected[::-1].tobytes()


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor(3),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([[4, 4], [0, 8]]),
        torch.tensor([[[1], [2]]], dtype=torch.int32),
    ],
    ids=["scalar", "none", "repeated", "int32"],
)
@mappings
def test_embedding_takes_ids_of_any_shape(mapping, ids):
    ids = ids.clamp(max=mapping.shape[0] - 1)
    memory = array(mapping.n_memory, torch.float32)
    weight = torch_ops.gather(memory, mapping.to_list(), 0.5)
    rows = torch_ops.embedding(memory, ids, mapping.to_list(), 0.5)
    assert rows.shape == (*ids.shape, mapping.shape[1])
    assert torch.equal(rows, weight[ids])


@pytest.mark.parametrize("wrong", [-1, 9])
def test_an_id_outside_the_table_is_refused(wrong):
    mapping = GRADIENT_MAPPINGS["row tiles"]
    ids = torch.tensor([0, 8, wrong])
    with pytest.raises(IndexError, match=r"outside \[0, 9\)"):
        torch_ops.embedding(array(mapping.n_memory), ids, mapping.to_list(), 1.0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes_of_weight_and_gradient(dtype, expected):
    mapping = GRADIENT_MAPPINGS["transposed tiles"]
    memory = array(mapping.n_memory, dtype)
    weight = torch_ops.gather(memory, mapping.to_list(), 1.0)
    rows = torch_ops.embedding(memory, torch.tensor([0]), mapping.to_list(), 1.0)
    assert weight.dtype == rows.dtype == expected
    (weight.sum() + rows.sum()).backward()
    assert memory.grad.dtype == dtype


@mappings
def test_gradients_agree_with_dense_indexing(mapping):
    """scale * sign * memory[index] written with aten's own indexing, whose gradient is torch's."""
    memory, twin = array(mapping.n_memory), array(mapping.n_memory)
    index, sign = torch.from_numpy(mapping.indices()), torch.from_numpy(mapping.signs())
    grad = torch.randn(mapping.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 4], [4, 2]])
    torch_ops.gather(memory, mapping.to_list(), -0.5).backward(grad)
    torch_ops.embedding(memory, ids, mapping.to_list(), -0.5).backward(grad[ids])
    dense = -0.5 * sign * twin[index]
    dense.backward(grad)
    (-0.5 * sign * twin[index])[ids].backward(grad[ids])
    torch.testing.assert_close(memory.grad, twin.grad)
    assert memory.grad.any()


@mappings
def test_first_and_second_gradients(mapping):
    fields, ids = mapping.to_list(), torch.tensor([0, 3, 3])
    memory = array(mapping.n_memory)

    def gathered(memory):
        return torch_ops.gather(memory, fields, 0.5)

    def looked_up(memory):
        return torch_ops.embedding(memory, ids, fields, 0.5)

    for function in (gathered, looked_up):
        assert torch.autograd.gradcheck(function, memory)
        assert torch.autograd.gradgradcheck(function, memory)


def test_second_order_gradient_of_a_loss():
    """Both operators are linear, so the Hessian of sum(W^2) is twice the diagonal of reader counts."""
    mapping = GRADIENT_MAPPINGS["transposed tiles"]
    memory = array(mapping.n_memory)
    weight = torch_ops.gather(memory, mapping.to_list(), 3.0)
    (first,) = torch.autograd.grad(weight.square().sum(), memory, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), memory)
    readers = np.bincount(mapping.indices().ravel(), minlength=mapping.n_memory)
    torch.testing.assert_close(second, 18.0 * torch.from_numpy(readers).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@mappings
def test_dispatcher_rules_hold(mapping, dtype):
    """Schema, fake kernel, autograd registration and dynamic shapes, by torch's own checker."""
    fields, ids = mapping.to_list(), torch.tensor([[0, 3], [3, 1]])
    grad = array(mapping.numel, torch.float32).view(mapping.shape)
    memory = array(mapping.n_memory, dtype)
    library.opcheck(torch.ops.roast.gather.default, (memory, fields, 0.5))
    library.opcheck(torch.ops.roast.embedding.default, (memory, ids, fields, 0.5))
    library.opcheck(torch.ops.roast.gather_backward.default, (grad, fields, 0.5))
    library.opcheck(torch.ops.roast.embedding_backward.default, (grad[ids], ids, fields, 0.5))


def test_a_graph_holds_the_record_and_no_weight():
    mapping = GRADIENT_MAPPINGS["transposed tiles"]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = torch.nn.Parameter(array(mapping.n_memory, torch.float32).detach())

        def forward(self, x):
            return x @ torch_ops.gather(self.memory, mapping.to_list(), 0.5).T

    program = torch.export.export(Model(), (torch.zeros(2, 20),))
    calls = [node for node in program.graph.nodes if node.target == torch.ops.roast.gather.default]
    assert [node.args[1] for node in calls] == [mapping.to_list()]
    assert math.prod(mapping.shape) not in {value.numel() for value in program.state_dict.values()}
    assert not program.constants


@pytest.mark.parametrize("sign", Sign)
def test_an_empty_lookup_has_a_zero_gradient(sign):
    mapping = next(m for m in GRADIENT_MAPPINGS.values() if m.sign is sign)
    memory = array(mapping.n_memory)
    torch_ops.embedding(memory, torch.empty(0, dtype=torch.int64), mapping.to_list(), 1.0).sum().backward()
    assert not memory.grad.any()
