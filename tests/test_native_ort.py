"""custom_ops/ort_op.cc in ONNX Runtime: the right bits, and an error for everything that is wrong."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from roast_export.errors import RoastError
from roast_export.libraries import ort_library_path
from roast_export.mapping import Element, Hash, Mapping, Sign
from tests.mappings import drawn, hashed, pattern
from tests.onnx_models import attributes, one_node

try:
    LIBRARY = ort_library_path()
except RoastError as error:
    pytest.skip(str(error), allow_module_level=True)

PLAIN = Mapping((6, 4), 40, (6, 4), True, (2, 2), hash1=Hash(2038074743, 5, 7, 0, 3), range=36)
TILE_SIGNS = Mapping((6, 4), 40, (6, 4), True, (2, 2), hash1=Hash(7, 1, 2), range=36, sign=Sign.TILE,
                     sign_hash=Hash(7, 1, 1))  # fmt: skip
LARGE = Mapping((700, 513), 4000, (700, 513), True, (32, 32), hash1=Hash(2038074743, 5, 7, 0, 3), range=187,
                align=16, sign=Sign.TILE, sign_hash=Hash(2038074743, 3, 11, 0, 1))  # fmt: skip
TABLE = Mapping((50, 12), 100, (50, 12), tile=(1, 8), hash1=Hash(45007, 5, 7), range=93)
STREAM = Mapping((300, 401), 5000, (300, 401), True, (16, 32), hash1=Hash(45007, 5, 7), range=4000,
                 sign=Sign.MT19937, sign_seed=7, sign_skip=9)  # fmt: skip
DRAWN = Mapping((300, 401), 5000, (300, 401), range=2**29, element=Element.MT19937_64, seed=9,
                sign=Sign.MT19937, sign_seed=9, sign_skip=3)  # fmt: skip


def session(model: bytes, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(LIBRARY)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes, feeds: dict[str, np.ndarray] | None = None, threads: int = 2) -> np.ndarray:
    result: np.ndarray = session(model, threads).run(None, feeds or {})[0]
    return result


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("m", [PLAIN, TILE_SIGNS, LARGE, TABLE], ids=["plain", "signs", "large", "table"])
@pytest.mark.parametrize("as_inputs", [(), ("memory",)], ids=["initializer", "input"])
def test_gather(m, dtype, as_inputs):
    memory = pattern(m.n_memory, dtype)
    model = one_node("RoastGather", attributes(m, -0.3), {"memory": memory}, as_inputs)
    assert_same_bits(run(model, dict.fromkeys(as_inputs, memory)), m.weight(memory, -0.3))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hashed(kinds=(Sign.NONE, Sign.TILE)), st.sampled_from([np.float32, np.float16]))
def test_gather_of_any_hashed_map(m, dtype):
    memory = pattern(m.n_memory, dtype)
    model = one_node("RoastGather", attributes(m, 0.7), {"memory": memory})
    assert_same_bits(run(model), m.weight(memory, 0.7))


@pytest.mark.parametrize("m", [PLAIN, TILE_SIGNS, LARGE], ids=["plain", "tile signs too", "large"])
def test_gather_signed(m):
    memory = pattern(m.n_memory)
    positive = np.random.default_rng(0).integers(0, 2, m.numel)
    signs = np.packbits(positive.astype(np.uint8), bitorder="little")
    model = one_node("RoastGatherSigned", attributes(m, 2.5), {"memory": memory, "signs": signs})
    factors = (2 * positive - 1).astype(np.float32).reshape(m.shape)
    assert_same_bits(run(model), m.weight(memory, 2.5) * factors)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(drawn(), hashed(), st.just(STREAM), st.just(DRAWN)))
def test_gather_drawn(m):
    memory = pattern(m.n_memory)
    model = one_node("RoastGatherDrawn", attributes(m, 0.7, drawn=True), {"memory": memory})
    assert_same_bits(run(model), m.weight(memory, 0.7))


@pytest.mark.parametrize("m", [STREAM, DRAWN], ids=["signs", "slots"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embedding_drawn(m, dtype):
    memory, ids = pattern(m.n_memory, dtype), np.array([[299, 0, 7], [7, 150, 1]], np.int64)
    arrays = {"memory": memory, "ids": ids}
    model = one_node("RoastEmbeddingDrawn", attributes(m, 3.0, drawn=True), arrays, ("ids",), rank=3)
    assert_same_bits(run(model, {"ids": ids}), m.weight(memory, 3.0)[ids])


@pytest.mark.parametrize("m", [STREAM, DRAWN], ids=["signs", "slots"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_drawn(m, bias):
    """The identity gives the weight back, as sums of one product."""
    memory, x = pattern(m.n_memory), np.eye(m.shape[1], dtype=np.float32)
    arrays = {"x": x, "memory": memory} | ({"bias": np.arange(300, dtype=np.float32)} if bias else {})
    op = "RoastLinearBiasDrawn" if bias else "RoastLinearDrawn"
    y = run(one_node(op, attributes(m, 0.5, drawn=True), arrays, ("x",), rank=2), {"x": x})
    want = m.weight(memory, 0.5).T + (arrays["bias"] if bias else np.float32(0))
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embedding(shape, dtype):
    memory = pattern(TABLE.n_memory, dtype)
    ids = np.random.default_rng(0).integers(0, 50, shape)
    arrays = {"memory": memory, "ids": np.array(ids)}
    model = one_node("RoastEmbedding", attributes(TABLE, 3.0), arrays, ("ids",), rank=len(shape) + 1)
    assert_same_bits(run(model, {"ids": arrays["ids"]}), TABLE.weight(memory, 3.0)[ids])


def test_embedding_of_many_rows_on_threads():
    memory, ids = pattern(LARGE.n_memory), np.arange(700, dtype=np.int64)[::-1].copy()
    arrays = {"memory": memory, "ids": ids}
    model = one_node("RoastEmbedding", attributes(LARGE), arrays, ("ids",))
    assert_same_bits(run(model, {"ids": ids}), LARGE.weight(memory)[ids])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("m", [LARGE, STREAM, DRAWN], ids=["large", "stream", "drawn"])
def test_threads_do_not_change_a_bit(m, threads):
    memory = pattern(m.n_memory)
    model = one_node("RoastGatherDrawn", attributes(m, drawn=True), {"memory": memory})
    assert_same_bits(run(model, threads=threads), m.weight(memory))


def test_eight_threads_share_a_session():
    memory = pattern(LARGE.n_memory)
    want = LARGE.weight(memory)
    s = session(one_node("RoastGather", attributes(LARGE), {"memory": memory}))
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: s.run(None, {})[0], range(48)):
            assert_same_bits(got, want)


def test_sessions_come_and_go_on_many_threads():
    memory = pattern(PLAIN.n_memory)
    model, want = one_node("RoastGather", attributes(PLAIN), {"memory": memory}), PLAIN.weight(memory)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: run(model, threads=1), range(48)):
            assert_same_bits(got, want)


def resident() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
@pytest.mark.parametrize(("side", "nodes"), [(2**15, 4), (2**13, 40)], ids=["large tables", "many tables"])
def test_tables_of_a_small_file_stay_small(side, nodes):
    """A table of 512 MiB for each of four nodes, and of 32 MiB for each of forty."""
    m = Mapping((side, side), 4096, (side, side), True, (4, 4), hash1=Hash(45007, 5, 7), range=4081)
    attributes_of = attributes(m)
    made = [
        helper.make_node("RoastLinear", ["x", "memory"], [f"y{k}"], domain="ai.roast", **attributes_of)
        for k in range(nodes)
    ]
    arrays = {"x": np.zeros((1, side), np.float32), "memory": pattern(4096)}
    model = onnx.load_from_string(one_node("RoastLinear", attributes_of, arrays, ("x", "memory"), rank=2))
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(made)
    model.graph.output.extend(helper.make_tensor_value_info(f"y{k}", 1, [None, None]) for k in range(nodes))
    data = model.SerializeToString()
    assert len(data) < 20_000
    before = resident()
    opened = session(data)
    assert resident() - before < 400 << 20
    del opened
    # What a closed session had is there for the next one.
    before = resident()
    again = session(data)
    assert resident() - before < 400 << 20
    del again


# ---- What must be refused ----

BIG = 2**62
Case = tuple[str, Mapping, dict[str, Any], str]
"""Operator, mapping, attributes to replace (None: leave out), part of the message."""

WRONG_ATTRIBUTES: dict[str, Case] = {
    "negative dimension": ("RoastGather", PLAIN, {"shape": [-6, 4]}, "dimension 0 of shape is -6"),
    "zero dimension": ("RoastGather", PLAIN, {"shape": [6, 0]}, "dimension 1 of shape is 0"),
    "shape overflows": ("RoastGather", PLAIN, {"shape": [BIG, BIG, BIG]}, "more than 2^48"),
    "shape wraps to 0": ("RoastGather", PLAIN, {"shape": [2**32, 2**32]}, "more than 2^48"),
    "no dimension": ("RoastGather", PLAIN, {"shape": []}, "attribute shape"),
    "nine dimensions": ("RoastGather", PLAIN, {"shape": [1] * 9}, "shape has 9 ints"),
    "view of another size": ("RoastGather", PLAIN, {"view": [5, 5]}, "does not hold the 24 elements"),
    "view overflows": ("RoastGather", PLAIN, {"view": [BIG, BIG]}, "does not hold"),
    "negative view": ("RoastGather", PLAIN, {"view": [-4, -6]}, "does not hold"),
    "perm unknown": ("RoastGather", PLAIN, {"perm": [0, 1, 2, 3]}, "perm must be"),
    "perm short": ("RoastGather", PLAIN, {"perm": [0, 2, 1]}, "perm has 3 ints, it must have 4"),
    "tile 0": ("RoastGather", PLAIN, {"tile": [0, 2]}, "tile 0x2 must be at least 1x1"),
    "negative tile": ("RoastGather", PLAIN, {"tile": [-1, -1]}, "at least 1x1"),
    "tile overflows": ("RoastGather", PLAIN, {"tile": [2**32, 2**32]}, "too many slots"),
    "array too small": ("RoastGather", PLAIN, {"tile": [32, 64]},
                        "'fc1.weight': tile 32x64 needs 2048 slots, the array has 40"),
    "origin negative": ("RoastGather", PLAIN, {"origin": [-1, 0]}, "origin -1 0"),
    "origin far": ("RoastGather", PLAIN, {"origin": [0, 2**63 - 1]}, "origin"),
    "hash modulus 0": ("RoastGather", PLAIN, {"hash1": [0, 1, 1, 1, 1]}, "hash1 has modulus 0"),
    "hash short": ("RoastGather", PLAIN, {"hash2": [1, 0, 0, 0]}, "hash2 has 4 ints, it must have 5"),
    "unused hash not 0": ("RoastGather", PLAIN, {"hash2": [1, 0, 0, 0, 3]}, "modulus 1 but is not all 0"),
    "unused sign not 0": ("RoastGather", PLAIN, {"sign_hash": [1, 0, 0, 0, 3]}, "sign_hash has modulus 1"),
    "range 0": ("RoastGather", PLAIN, {"range": 0}, "range 0"),
    "range past the end": ("RoastGather", PLAIN, {"range": 41}, "range 41"),
    "range overflows": ("RoastGather", PLAIN, {"range": 2**62, "align": 2**62}, "range"),
    "align 0": ("RoastGather", PLAIN, {"align": 0}, "align 0"),
    "n_memory negative": ("RoastGather", PLAIN, {"n_memory": -40}, "n_memory -40"),
    "n_memory huge": ("RoastGather", PLAIN, {"n_memory": 2**31}, "n_memory"),
    "scale nan": ("RoastGather", PLAIN, {"scale": float("nan")}, "scale is not finite"),
    "scale infinite": ("RoastGather", PLAIN, {"scale": float("inf")}, "scale is not finite"),
    "tile a float": ("RoastGather", PLAIN, {"tile": [2.0, 2.0]}, "tile"),
    "range a float": ("RoastGather", PLAIN, {"range": 36.0}, "range is missing or is not an int"),
    "range a list": ("RoastGather", PLAIN, {"range": [36]}, "range is missing or is not an int"),
    "scale an int": ("RoastGather", PLAIN, {"scale": 1}, "scale is missing or is not a float"),
    "shape a string": ("RoastGather", PLAIN, {"shape": "6 4"}, "shape"),
    "drawn, kind unknown": ("RoastGatherDrawn", DRAWN, {"element": 3}, "element 3"),
    "drawn, sign unknown": ("RoastGatherDrawn", DRAWN, {"sign": -1}, "sign -1"),
    "drawn, seed negative": ("RoastGatherDrawn", DRAWN, {"seed": -1}, "seed -1"),
    "drawn, skip too far": ("RoastGatherDrawn", DRAWN, {"sign_skip": 2**50}, "sign_skip"),
    "drawn, too many": ("RoastGatherDrawn", DRAWN, {"shape": [2**15, 2**16], "view": [2**15, 2**16]},
                        "at most 2^30"),
    "drawn, range": ("RoastGatherDrawn", DRAWN, {"range": 2**32 + 1}, "range"),
    "drawn, tile": ("RoastGatherDrawn", DRAWN, {"tile": [1, 2]}, "a drawn map has no"),
    "drawn, no seed": ("RoastGatherDrawn", DRAWN, {"seed": None}, "seed is missing"),
    "embedding of a cube": ("RoastEmbedding", Mapping((5, 10, 12), 100, (50, 12), tile=(1, 8)), {},
                            "shape has 3 ints, it must have 2"),
} | {
    f"no {name}": ("RoastGather", PLAIN, {name: None}, f"{name} is missing")
    for name in attributes(PLAIN)
}  # fmt: skip


def model_of(case: Case) -> tuple[bytes, dict[str, np.ndarray]]:
    op, m, replaced, _ = case
    values = {k: v for k, v in {**attributes(m, drawn=op == "RoastGatherDrawn"), **replaced}.items()
              if v is not None}  # fmt: skip
    arrays = {"memory": pattern(m.n_memory)}
    if op == "RoastEmbedding":
        arrays["ids"] = np.zeros(3, np.int64)
    return one_node(op, values, arrays, ("memory",), rank=2), {"memory": arrays["memory"]}


@pytest.mark.parametrize("name", WRONG_ATTRIBUTES)
def test_wrong_attributes_are_refused_at_load(name):
    case = WRONG_ATTRIBUTES[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011 the runtime's exception types differ by version
        session(model_of(case)[0])
    assert case[3] in str(caught.value)
    assert "fc1.weight" in str(caught.value)


def test_hostile_models_do_not_end_the_process():
    program = """
from tests.test_native_ort import WRONG_ATTRIBUTES, model_of, run
for case in WRONG_ATTRIBUTES.values():
    try:
        run(*model_of(case))
    except Exception:
        continue
    raise SystemExit(f"accepted: {case}")
print("survived")
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "survived"


WRONG_MEMORY = {
    "too short": (np.zeros(39, np.float32), "memory has 39 elements"),
    "too long": (np.zeros(41, np.float32), "memory has 41 elements"),
    "empty": (np.zeros(0, np.float32), "memory has 0 elements"),
    "two dimensions": (np.zeros((8, 5), np.float32), "in 2 dimensions"),
    "no dimension": (np.zeros((), np.float32), "in 0 dimensions"),
    "float64": (np.zeros(40, np.float64), "memory must be float32 or float16"),
    "int64": (np.zeros(40, np.int64), "memory must be float32 or float16"),
}


@pytest.mark.parametrize("name", WRONG_MEMORY)
@pytest.mark.parametrize("as_inputs", [(), ("memory",)], ids=["initializer", "input"])
@pytest.mark.parametrize("op", ["RoastGather", "RoastGatherSigned", "RoastGatherDrawn", "RoastEmbedding"])
def test_wrong_memory_is_refused_at_run(op, name, as_inputs):
    memory, message = WRONG_MEMORY[name]
    arrays = {"memory": memory}
    arrays |= {"RoastGatherSigned": {"signs": np.zeros(3, np.uint8)},
               "RoastEmbedding": {"ids": np.zeros(3, np.int64)}}.get(op, {})  # fmt: skip
    model = one_node(op, attributes(PLAIN, drawn=op == "RoastGatherDrawn"), arrays, as_inputs)
    with pytest.raises(Exception, match=message) as caught:
        run(model, dict.fromkeys(as_inputs, memory))
    assert f"{op} 'fc1.weight'" in str(caught.value)


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        (np.zeros(2, np.uint8), "signs has 2 bytes in 1 dimensions, it must have 3"),
        (np.zeros((3, 1), np.uint8), "signs has 3 bytes in 2 dimensions"),
        (np.zeros(3, np.int64), "(?i)type"),
    ],
)
def test_wrong_signs_are_refused(signs, message):
    arrays = {"memory": pattern(PLAIN.n_memory), "signs": signs}
    with pytest.raises(Exception, match=message):
        run(one_node("RoastGatherSigned", attributes(PLAIN), arrays))


@pytest.mark.parametrize("bad", [-1, 50, 2**63 - 1, -(2**63)])
def test_a_bad_id_is_refused(bad):
    ids = np.array([[0, 49], [bad, 3]], np.int64)
    arrays = {"memory": pattern(TABLE.n_memory), "ids": ids}
    model = one_node("RoastEmbedding", attributes(TABLE), arrays, ("ids",), rank=3)
    with pytest.raises(Exception, match=rf"id {bad} at place 2 is not in \[0, 50\)"):
        run(model, {"ids": ids})


def test_an_output_that_does_not_fit_memory_is_an_error():
    m = Mapping((2**24, 2**24), 4, (2**24, 2**24))
    model = one_node("RoastGather", attributes(m), {"memory": pattern(4)})
    with pytest.raises(Exception, match=r"(?i)alloc|memory"):
        run(model)


def test_nodes_after_it_need_no_declared_shape():
    m = Mapping((8, 3, 3, 3), 60, (8, 27), True, (4, 4), hash1=Hash(45007, 5, 7), range=45)
    memory, x = pattern(60) / 1000, np.random.default_rng(0).random((2, 3, 9, 9), np.float32)
    model = onnx.load_from_string(one_node("RoastGather", attributes(m), {"memory": memory}))
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 9, 9]))
    graph.node.append(helper.make_node("Conv", ["x", "W"], ["y"]))
    graph.node.append(helper.make_node("Flatten", ["y"], ["z"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 392]))
    dense = onnx.ModelProto.FromString(model.SerializeToString())
    del dense.graph.node[0]
    dense.graph.initializer.append(numpy_helper.from_array(m.weight(memory), "W"))
    got, want = (run(each.SerializeToString(), {"x": x}) for each in (model, dense))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_runtime_that_is_too_old_gets_a_status():
    """A host that offers version 1 only: CreateStatus, the first of its functions, is all that is called."""
    said = []
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: said.append((code, message)) or 4711
    )
    api = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(api) if version == 1 else None
    )
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), None)
    register = ctypes.CDLL(LIBRARY).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) == 4711
    assert said == [(1, b"roast: this ONNX Runtime is too old, version 1.16 or later is needed")]
