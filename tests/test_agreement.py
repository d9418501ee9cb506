"""All four implementations of the mapping against the tables that the research code itself produced."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from roast_export import onnx_ops, torch_ops
from roast_export.libraries import ort_library_path
from roast_export.mapping import Element, Sign
from tests.vectors.make_vectors import RESEARCH, research_mapping, sha256

TABLES = [
    pytest.param(family, table, id=f"{family}-{table.get('kind', '')}-{k}")
    for family, tables in json.loads(RESEARCH.read_text(encoding="utf-8")).items()
    if family != "_comment"
    for k, table in enumerate(tables)
]


def model(mapping, operator, memory):
    inputs = {"memory": memory}
    if operator == "RoastGatherSigned":
        inputs["signs"] = np.packbits(mapping.signs().ravel() > 0, bitorder="little")
    node = helper.make_node(
        operator,
        list(inputs),
        ["W"],
        domain=onnx_ops.DOMAIN,
        **onnx_ops.attributes(mapping, 1.0, operator),
    )
    stored = [numpy_helper.from_array(value, name) for name, value in inputs.items()]
    output = helper.make_tensor_value_info("W", 1, mapping.shape)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, 1)]
    graph = helper.make_graph([node], "g", [], [output], stored)
    functions = onnx_ops.functions([operator], 20)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def from_reference(mapping, memory):
    return mapping.weight(memory)


def from_torch(mapping, memory):
    return torch_ops.gather(torch.from_numpy(memory), mapping.to_list(), 1.0).numpy()


def from_function(mapping, memory):
    if mapping.element is not Element.HASH:
        pytest.skip("slots drawn from MT19937 have no form in standard ops (docs/operators.md)")
    operator = "RoastGatherSigned" if mapping.sign is Sign.MT19937 else "RoastGather"
    return ReferenceEvaluator(model(mapping, operator, memory)).run(None, {})[0]


def from_library(mapping, memory):
    operator = "RoastGatherDrawn" if onnx_ops.needs_stream(mapping) else "RoastGather"
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(ort_library_path())
    content = model(mapping, operator, memory).SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, {})[0]


@pytest.mark.parametrize("implementation", [from_reference, from_torch, from_function, from_library])
@pytest.mark.parametrize(("family", "table"), TABLES)
def test_research_tables(family, table, implementation):
    mapping = research_mapping(family, table)
    # memory[k] = k + 1, exact in float32, so that each weight is its own index and sign.
    weight = implementation(mapping, np.arange(1, mapping.n_memory + 1, dtype=np.float32))
    index = np.abs(weight).astype(np.int64) - 1
    assert sha256(index.T if family == "rzlinear" else index) == table["index_sha256"]
    if "sign_sha256" in table:
        assert sha256(np.sign(weight).astype(np.int8)) == table["sign_sha256"]
    else:
        assert (weight > 0).all()
    assert sha256(index + 1) != table["index_sha256"], "control"
