"""The ONNX twin of the mapping: functions in standard ops, run by runtimes that know nothing of us."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from roast_export import families, onnx_ops
from roast_export.errors import ExportError, MappingError, RoastError
from roast_export.libraries import ort_library_path
from roast_export.mapping import Element, Hash, Mapping, Sign
from roast_export.onnx_lookup import is_narrow
from tests.mappings import drawn, hashed, pattern
from tests.vectors.make_vectors import GOLDEN, RESEARCH, memory_of, research_mapping, sha256

Feeds = dict[str, np.ndarray]
VECTORS = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
RECORDS = {v["name"]: Mapping.from_list(v["mapping"]) for v in VECTORS}
HASHED = [v for v in VECTORS if not onnx_ops.needs_stream(RECORDS[v["name"]])]
SIGNED = [
    v
    for v in VECTORS
    if RECORDS[v["name"]].sign is Sign.MT19937 and RECORDS[v["name"]].element is Element.HASH
]
TABLES = [v for v in HASHED if len(RECORDS[v["name"]].shape) == 2]
NARROW = [v for v in TABLES if is_narrow(RECORDS[v["name"]])]
TABLE = families.roast((50, 40), 700, seed=2, tile=(1, 32), align=16, transposed=False)
MATRIX = families.roast((20, 30), 900, seed=1, tile=(8, 16), align=4)
FUNCTIONS = ["RoastGather", "RoastGatherFolded", "RoastGatherSigned", "RoastEmbedding"]
OPSETS = range(onnx_ops.LOWEST_OPSET, 24)


def model(
    operator: str,
    mapping: Mapping,
    arrays: Feeds,
    *,
    scale: float = 1.0,
    inputs: tuple[str, ...] = (),
    opset: int = 18,
    narrow: bool = False,
    **changes: Any,
) -> onnx.ModelProto:
    """One node with its functions; `arrays` are its inputs in order, initializers but for `inputs`."""
    values = onnx_ops.attributes(mapping, scale, operator) | changes
    rank = arrays["ids"].ndim + 1 if "ids" in arrays else len(mapping.shape)
    node = helper.make_node(operator, list(arrays), ["result"], name="w", domain=onnx_ops.DOMAIN, **values)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(arrays[name].dtype), [None] * arrays[name].ndim
            )
            for name in inputs
        ],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items() if name not in inputs],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=onnx_ops.functions([operator], opset, narrow), ir_version=10
    )


def in_onnxruntime(proto: onnx.ModelProto, feeds: Feeds, folding: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not folding:
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def unfolded(proto: onnx.ModelProto, feeds: Feeds) -> np.ndarray:
    return in_onnxruntime(proto, feeds, folding=False)


def in_reference(proto: onnx.ModelProto, feeds: Feeds) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0])


Runner = Callable[[onnx.ModelProto, Feeds], np.ndarray]
RUNNERS: dict[str, Runner] = {"folded": in_onnxruntime, "unfolded": unfolded, "reference": in_reference}
every_runner = pytest.mark.parametrize("run", RUNNERS.values(), ids=RUNNERS)
every_array = pytest.mark.parametrize(
    ("dtype", "digest"), [(np.float32, "weight_sha256"), (np.float16, "weight_half_sha256")]
)


def of_vector(
    operator: str, vector: dict[str, Any], dtype: type, more: Feeds | None = None, **changes: Any
) -> onnx.ModelProto:
    mapping = RECORDS[vector["name"]]
    arrays = {"memory": memory_of(mapping.n_memory).astype(dtype), **(more or {})}
    inputs = tuple(name for name in ("ids",) if name in arrays)
    return model(operator, mapping, arrays, scale=vector["scale"], inputs=inputs, **changes)


def packed(signs: np.ndarray) -> np.ndarray:
    return np.packbits(signs.ravel() > 0, bitorder="little")


# ---- The right bits ----


def test_every_vector_is_covered():
    rest = [v["name"] for v in VECTORS if v not in HASHED and v not in SIGNED]
    assert all(RECORDS[name].element is not Element.HASH for name in rest)
    assert (len(HASHED), len(SIGNED), len(rest)) == (len(VECTORS) - 19, 13, 6)


@every_runner
@every_array
@pytest.mark.parametrize("vector", HASHED, ids=lambda v: v["name"])
def test_gather_gives_the_golden_bits(vector, dtype, digest, run):
    weight = run(of_vector("RoastGather", vector, dtype), {})
    assert weight.dtype == np.float32
    assert weight.shape == RECORDS[vector["name"]].shape
    assert sha256(weight) == vector[digest]


@every_runner
@every_array
@pytest.mark.parametrize("vector", TABLES, ids=lambda v: v["name"])
def test_embedding_of_every_row_gives_the_golden_bits(vector, dtype, digest, run):
    ids = np.arange(RECORDS[vector["name"]].shape[0])
    rows = run(of_vector("RoastEmbedding", vector, dtype, {"ids": ids}), {"ids": ids})
    assert rows.dtype == np.float32
    assert sha256(rows) == vector[digest]


@every_runner
@every_array
@pytest.mark.parametrize("vector", NARROW, ids=lambda v: v["name"])
def test_a_narrow_embedding_gives_the_golden_bits(vector, dtype, digest, run):
    ids = np.arange(RECORDS[vector["name"]].shape[0])
    rows = run(of_vector("RoastEmbedding", vector, dtype, {"ids": ids}, narrow=True), {"ids": ids})
    assert rows.dtype == np.float32
    assert sha256(rows) == vector[digest]


@every_runner
@every_array
@pytest.mark.parametrize("vector", SIGNED, ids=lambda v: v["name"])
def test_signed_gather_gives_the_golden_bits(vector, dtype, digest, run):
    signs = packed(RECORDS[vector["name"]].signs())
    assert sha256(run(of_vector("RoastGatherSigned", vector, dtype, {"signs": signs}), {})) == vector[digest]


@every_runner
@pytest.mark.parametrize(
    "change",
    [
        {"range": 186},
        {"align": 8},
        {"scale": 0.25},
        {"perm": [0, 2, 1, 3], "view": [70, 50]},
        {"hash1": [2038074743, 1, 2, 3, 4]},
        {"hash2": [7, 1, 2, 3, 4]},
        {"sign_hash": [2038074743, 1, 2, 3, 4]},
        {"tile": [16, 64]},
        {"origin": [32, 0]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_control_another_record_gives_other_bits(change, run):
    vector = next(v for v in VECTORS if v["name"] == "roast transposed, tile signs")
    ids = np.arange(70)
    for operator, more, feeds in (("RoastGather", {}, {}), ("RoastEmbedding", {"ids": ids}, {"ids": ids})):
        proto = of_vector(operator, vector, np.float32, more)
        node = proto.graph.node[0]
        same = run(proto, feeds)
        kept = [a for a in node.attribute if a.name not in change]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(*item) for item in change.items())])
        assert sha256(same) == vector["weight_sha256"]
        assert sha256(run(proto, feeds)) != vector["weight_sha256"]


def test_control_another_sign_gives_other_bits():
    signs = packed(RECORDS[SIGNED[0]["name"]].signs())
    signs[3] ^= 16
    proto = of_vector("RoastGatherSigned", SIGNED[0], np.float32, {"signs": signs})
    assert sha256(in_onnxruntime(proto, {})) != SIGNED[0]["weight_sha256"]


@settings(max_examples=60, deadline=None)
@given(hashed(), st.floats(-4, 4, width=32), st.sampled_from([np.float32, np.float16]))
def test_any_hashed_map_agrees_with_the_reference(mapping, scale, dtype):
    memory = pattern(mapping.n_memory, dtype)
    expected = mapping.weight(memory, scale)
    if mapping.sign is Sign.MT19937:
        arrays = {"memory": memory, "signs": packed(mapping.signs())}
        proto = model("RoastGatherSigned", mapping, arrays, scale=scale)
    else:
        proto = model("RoastGather", mapping, {"memory": memory}, scale=scale)
    assert unfolded(proto, {}).tobytes() == expected.tobytes()
    if len(mapping.shape) == 2 and mapping.sign is not Sign.MT19937:
        ids = np.arange(mapping.shape[0])[::-1].copy()
        proto = model("RoastEmbedding", mapping, {"memory": memory, "ids": ids}, scale=scale, inputs=("ids",))
        assert unfolded(proto, {"ids": ids}).tobytes() == expected[::-1].tobytes()


# ---- The tables that the research code made ----

RESEARCH_TABLES = [
    pytest.param(family, table, id=f"{family}-{number}")
    for family, tables in json.loads(RESEARCH.read_text(encoding="utf-8")).items()
    if family != "_comment"
    for number, table in enumerate(tables)
]
RESEARCH_HASHED = [p for p in RESEARCH_TABLES if p.values[1].get("kind") != "random"]
RESEARCH_DRAWN = [p for p in RESEARCH_TABLES if p.values[1].get("kind") == "random"]


def index_and_sign(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read back from the weight of memory[k] = k + 1, which float32 holds exactly."""
    return np.abs(weight).astype(np.int64) - 1, np.sign(weight).astype(np.int8)


def agrees(family: str, table: dict[str, Any], weight: np.ndarray) -> bool:
    index, sign = index_and_sign(weight)
    index = index.T if family == "rzlinear" else index
    signed = sha256(sign) == table["sign_sha256"] if "sign_sha256" in table else bool((sign == 1).all())
    return sha256(index) == table["index_sha256"] and signed


def test_there_are_42_hashed_tables_and_2_drawn():
    assert (len(RESEARCH_HASHED), len(RESEARCH_DRAWN)) == (42, 2)


@pytest.mark.parametrize(("family", "table"), RESEARCH_HASHED)
def test_the_functions_give_the_research_tables(family, table):
    mapping = research_mapping(family, table)
    assert mapping.n_memory < 1 << 24
    arrays = {"memory": np.arange(1, mapping.n_memory + 1, dtype=np.float32)}
    operator = "RoastGather"
    if mapping.sign is Sign.MT19937:
        operator, arrays["signs"] = "RoastGatherSigned", packed(mapping.signs())
    assert agrees(family, table, in_onnxruntime(model(operator, mapping, arrays), {}))
    g = mapping.hash1.g + (1 if mapping.hash1.g < 0 else -1)
    other = dataclasses.replace(mapping, hash1=dataclasses.replace(mapping.hash1, g=g))
    assert not agrees(family, table, in_onnxruntime(model(operator, other, arrays), {})), "control"


@pytest.mark.parametrize(("family", "table"), RESEARCH_DRAWN)
def test_the_native_operator_gives_the_drawn_tables(family, table):
    try:
        library = ort_library_path()
    except RoastError as error:
        pytest.skip(str(error))
    mapping = research_mapping(family, table)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    arrays = {"memory": np.arange(1, mapping.n_memory + 1, dtype=np.float32)}
    for seed, same in ((mapping.seed, True), (mapping.seed + 1, False)):
        changed = dataclasses.replace(mapping, seed=seed)
        content = model("RoastGatherDrawn", changed, arrays).SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        assert agrees(family, table, session.run(None, {})[0]) is same


# ---- Ids ----


@every_runner
@pytest.mark.parametrize("mapping", [TABLE, MATRIX], ids=["row tiles", "transposed"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (2, 0), (2, 3, 4)], ids=str)
def test_embedding_takes_ids_of_any_shape(run, mapping, shape):
    memory = pattern(mapping.n_memory)
    ids = np.random.default_rng(0).integers(0, mapping.shape[0], shape, np.int64)
    ids = np.asarray(ids, np.int64)
    proto = model("RoastEmbedding", mapping, {"memory": memory, "ids": ids}, scale=0.3, inputs=("ids",))
    rows = run(proto, {"ids": ids})
    assert rows.shape == (*shape, mapping.shape[1])
    assert rows.tobytes() == mapping.weight(memory, 0.3)[ids].tobytes()


@every_runner
@pytest.mark.parametrize("bad", [-1, 50, 2**31, 2**63 - 1, -(2**63)])
def test_an_id_outside_the_table_is_refused(run, bad):
    good = np.array([[0, 49], [49, 3]])
    proto = model("RoastEmbedding", TABLE, {"memory": pattern(TABLE.n_memory), "ids": good}, inputs=("ids",))
    assert run(proto, {"ids": good}).shape == (2, 2, 40)
    with pytest.raises(Exception, match=r"(?i)out of (data )?bounds|index"):
        run(proto, {"ids": np.where(good == 3, bad, good)})


# ---- What the functions are made of ----

ALLOWED = {
    "Add", "Cast", "Concat", "Constant", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual", "Less",
    "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Or", "Range", "ReduceSum", "Reshape", "Shape", "Size",
    "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Standard operators that stock phone and browser packages have."""

TYPES = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}


def faults(function: onnx.FunctionProto) -> list[str]:
    """What keeps a function off a stock package, or makes it belong to one layer."""
    found = []
    for node in function.node:
        if node.domain == onnx_ops.DOMAIN:
            if node.op_type != "RoastGather":
                found.append(f"calls {node.op_type}")
            continue
        if node.domain or node.op_type not in ALLOWED:
            found.append(f"{node.domain}.{node.op_type}")
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i not in TYPES:
                found.append(f"cast to {attribute.i}")
            if attribute.name == "fmod" and attribute.i:
                found.append("fmod")
            if attribute.type in (attribute.GRAPH, attribute.TENSOR, attribute.SPARSE_TENSOR):
                found.append(f"{attribute.name} holds data")
            if len(attribute.ints) > 8:
                found.append(f"{attribute.name} holds a list")
    return found


@pytest.mark.parametrize("function", onnx_ops.functions(onnx_ops.OPERATORS, 18), ids=lambda f: f.name)
def test_a_function_is_generic_and_made_of_plain_ops(function):
    assert faults(function) == []
    assert list(function.attribute) == list(onnx_ops.ATTRIBUTES)
    used = {a.ref_attr_name for node in function.node for a in node.attribute} - {""}
    wanted = set(onnx_ops.ATTRIBUTES) - ({"unit"} if not used >= {"unit"} else set())
    assert used == wanted
    assert function.ByteSize() < 8192
    assert function.domain == onnx_ops.DOMAIN


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (helper.make_node("BitwiseAnd", ["a", "b"], ["c"]), ".BitwiseAnd"),
        (helper.make_node("FusedMatMul", ["a", "b"], ["c"], domain="com.microsoft"), "com.microsoft.Fused"),
        (helper.make_node("Cast", ["a"], ["c"], to=TensorProto.DOUBLE), "cast to 11"),
        (helper.make_node("Mod", ["a", "b"], ["c"], fmod=1), "fmod"),
        (helper.make_node("Constant", [], ["c"], value_ints=list(range(9))), "value_ints holds a list"),
        (helper.make_node("RoastLinear", ["a", "b"], ["c"], domain=onnx_ops.DOMAIN), "calls RoastLinear"),
        (
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(3))),
            "value holds data",
        ),
    ],
    ids=lambda x: x.op_type if isinstance(x, onnx.NodeProto) else "",
)
def test_control_a_function_with_a_fault_is_noticed(node, fault):
    function = onnx_ops.functions(["RoastGather"], 18)[0]
    function.node.append(node)
    assert len(faults(function)) == 1
    assert faults(function)[0].startswith(fault)


def test_functions_bring_those_that_they_call():
    assert [f.name for f in onnx_ops.functions(["RoastGatherSigned"], 18)] == [
        "RoastGather",
        "RoastGatherSigned",
    ]
    assert onnx_ops.functions(["RoastGatherDrawn"], 18) == []
    assert {f.opset_import[0].version for f in onnx_ops.functions(onnx_ops.OPERATORS, 21)} == {21}


def example(operator: str, opset: int = 18) -> tuple[onnx.ModelProto, Feeds, np.ndarray]:
    """A model of one operator, what to feed it, what it gives."""
    mapping = TABLE if operator == "RoastEmbedding" else MATRIX
    memory = pattern(mapping.n_memory)
    weight = mapping.weight(memory)
    if operator == "RoastGatherSigned":
        proto = model(operator, mapping, {"memory": memory, "signs": np.full(75, 255, np.uint8)}, opset=opset)
    elif operator == "RoastEmbedding":
        ids = np.array([4, 0, 49])
        arrays = {"memory": memory, "ids": ids}
        return model(operator, mapping, arrays, inputs=("ids",), opset=opset), {"ids": ids}, weight[ids]
    else:
        proto = model(operator, mapping, {"memory": memory}, opset=opset)
    return proto, {}, weight


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("operator", FUNCTIONS)
def test_every_opset_is_checked_and_runs(operator, opset):
    proto, feeds, weight = example(operator, opset)
    onnx.checker.check_model(proto, full_check=True)
    for run in RUNNERS.values():
        assert run(proto, feeds).tobytes() == weight.tobytes()


def test_control_the_checker_notices_a_function_of_another_opset():
    proto, _, _ = example("RoastGather", 18)
    proto.functions[0].opset_import[0].version = 12
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto, full_check=True)


def test_registering_schemas_twice_is_harmless():
    onnx_ops.register_schemas()
    onnx_ops.register_schemas()
    assert (
        onnx.defs.get_schema("RoastGather", onnx_ops.DOMAIN).attributes.keys() == onnx_ops.ATTRIBUTES.keys()
    )


# ---- Attributes ----

KINDS = {"INT": "i", "INTS": "ints", "FLOAT": "f"}


def node_of(mapping: Mapping, factor: float = 1.0, operator: str = "RoastGather", **changes: Any):
    """A node; an attribute that is changed to None is left out."""
    values = {
        k: v for k, v in (onnx_ops.attributes(mapping, factor, operator) | changes).items() if v is not None
    }
    return helper.make_node(operator, ["memory"], ["w"], name="fc.weight", domain=onnx_ops.DOMAIN, **values)


@settings(deadline=None)
@given(st.one_of(hashed(), drawn()), st.floats(-(2.0**100), 2.0**100, width=32))
def test_attributes_and_mapping_of_are_inverse(mapping, scale):
    # A record has a matrix of its own; the operators see view and perm, which give it back.
    operator = "RoastGatherDrawn" if onnx_ops.needs_stream(mapping) else "RoastGather"
    found, found_scale = onnx_ops.mapping_of(node_of(mapping, scale, operator))
    assert found == mapping
    assert np.float32(found_scale) == np.float32(scale)


@pytest.mark.parametrize("operator", onnx_ops.OPERATORS)
def test_attributes_are_those_of_the_schema(operator):
    onnx_ops.register_schemas()
    schema = onnx.defs.get_schema(operator, onnx_ops.DOMAIN)
    node = node_of(MATRIX, operator=operator)
    assert {a.name for a in node.attribute} == set(schema.attributes)
    for attribute in node.attribute:
        wanted = schema.attributes[attribute.name].type
        assert onnx.AttributeProto.AttributeType.Name(attribute.type) == wanted.name


READ = sorted(set(onnx_ops.ATTRIBUTES) - {"unit"})


@pytest.mark.parametrize("name", READ)
def test_a_missing_attribute_is_refused(name):
    with pytest.raises(ExportError, match=rf"RoastGather 'fc.weight' has no attribute '{name}'"):
        onnx_ops.mapping_of(node_of(MATRIX, **{name: None}))


BIG = 2**62
HOSTILE: dict[str, tuple[dict[str, Any], type[RoastError], str]] = {
    "negative dimension": ({"shape": [-20, 30]}, MappingError, "at least 1"),
    "zero dimension": ({"shape": [20, 0]}, MappingError, "at least 1"),
    "overflowing shape": ({"shape": [BIG, BIG, BIG]}, MappingError, "dimensions of at least 1"),
    "nine dimensions": ({"shape": [20, 30, *[1] * 7]}, MappingError, "1 to 8 dimensions"),
    "overflowing view": ({"view": [BIG, BIG]}, MappingError, "does not hold"),
    "negative view": ({"view": [-30, -20]}, MappingError, "does not hold"),
    "view of three": ({"view": [2, 10, 30]}, ExportError, "bad attribute"),
    "tile 0": ({"tile": [0, 16]}, MappingError, "at least 1x1"),
    "tile too large": ({"tile": [32, 64]}, MappingError, "use a smaller tile"),
    "array too large": ({"n_memory": 2**40}, MappingError, "not in"),
    "negative array": ({"n_memory": -5}, MappingError, "not in"),
    "origin": ({"origin": [-1, 0]}, MappingError, "origin"),
    "hash of four": ({"hash1": [7, 1, 2, 3]}, None, ""),
    "hash of six": ({"hash1": [7, 1, 2, 3, 4, 5]}, ExportError, "bad attribute"),
    "modulus 0": ({"hash2": [0, 0, 0, 0, 0]}, MappingError, "modulus 0"),
    "range 0": ({"range": 0}, MappingError, "at least 1"),
    "range too large": ({"range": BIG}, MappingError, "past the array"),
    "infinite scale": ({"scale": float("inf")}, MappingError, "not a finite float32"),
    "scale not a number": ({"scale": float("nan")}, MappingError, "not a finite float32"),
    "unknown element": ({"element": 9}, ExportError, "bad attribute: 9"),
    "unknown sign": ({"sign": -1}, ExportError, "bad attribute: -1"),
    "tile an int": ({"tile": 8}, ExportError, "bad attribute"),
    "range a list": ({"range": [8]}, ExportError, "bad attribute"),
    "scale a text": ({"scale": "one"}, ExportError, "bad attribute"),
    "shape a text": ({"shape": "20 30"}, RoastError, ""),
    "tile of three": ({"tile": [8, 16, 1]}, RoastError, ""),
    "origin of one": ({"origin": [0]}, RoastError, ""),
    "perm unknown": ({"perm": [0, 1, 2, 3], "view": [20, 30]}, RoastError, "perm"),
    "range a float": ({"range": 8.0}, RoastError, ""),
    "tile of floats": ({"tile": [8.0, 16.0]}, RoastError, ""),
    "scale an int": ({"scale": 1}, RoastError, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_attribute_is_refused(name):
    change, error, message = HOSTILE[name]
    with pytest.raises(error or RoastError, match=message or None):
        onnx_ops.mapping_of(node_of(MATRIX, **change))


def test_control_the_attributes_that_the_wrong_ones_are_made_from_are_read():
    assert onnx_ops.mapping_of(node_of(MATRIX, -0.5)) == (MATRIX, -0.5)
    assert Hash(*onnx_ops.attributes(MATRIX, 1, "RoastGather")["hash1"]) == MATRIX.hash1
