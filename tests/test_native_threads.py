"""Sixteen threads share a session for ten thousand runs: the same bits, and no memory that grows."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from roast_export.errors import RoastError
from roast_export.libraries import ort_library_path
from roast_export.mapping import Hash, Mapping, Sign
from tests.mappings import pattern
from tests.onnx_models import DOMAIN, attributes

try:
    LIBRARY = ort_library_path()
except RoastError as error:
    pytest.skip(str(error), allow_module_level=True)

STATUS = Path("/proc/self/statm")
THREADS, WARM_UP, RUNS = 16, 1_000, 10_000
MOST_GROWTH = 2 << 20
P = 2038074743


def tiled(rows: int, cols: int, tile: tuple[int, int], transposed: bool) -> Mapping:
    return Mapping((rows, cols), 4096, (rows, cols), transposed, tile, hash1=Hash(P, 964393934, 7, 0, 3),
                   range=193, align=16, sign=Sign.TILE, sign_hash=Hash(P, 1937116053, 71, 0, 5))  # fmt: skip


def model() -> bytes:
    """ids -> embedding -> linear with bias -> linear -> plus a product with a gathered weight."""
    maps = {
        "RoastEmbedding": tiled(500, 64, (1, 32), False),
        "RoastLinearBias": tiled(96, 64, (32, 32), True),
        "RoastLinear": tiled(64, 96, (32, 32), True),
        "RoastGather": tiled(64, 64, (16, 16), False),
    }
    inputs = {
        "RoastEmbedding": ["memory", "ids"],
        "RoastLinearBias": ["RoastEmbedding", "memory", "bias"],
        "RoastLinear": ["RoastLinearBias", "memory"],
        "RoastGather": ["memory"],
    }
    nodes = [
        helper.make_node(op, inputs[op], [op], op, domain=DOMAIN, **attributes(maps[op], 0.01)) for op in maps
    ]
    nodes.append(helper.make_node("MatMul", ["RoastEmbedding", "RoastGather"], ["product"]))
    nodes.append(helper.make_node("Add", ["RoastLinear", "product"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
        [
            numpy_helper.from_array(pattern(4096) / 1000, "memory"),
            numpy_helper.from_array(np.arange(96, dtype=np.float32), "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return made.SerializeToString()


def resident() -> int:
    return int(STATUS.read_text().split()[1]) * 4096


def hammer(keep: bool) -> dict[str, int]:
    """Bytes by which this process grew after the warm-up, and runs whose bits were not the first one's.

    keep: a control, that keeps what each run gives.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(LIBRARY)
    session = onnxruntime.InferenceSession(model(), options, providers=["CPUExecutionProvider"])
    # Batches of every size, so that scratch blocks of other sizes are in use at the same time.
    feeds = [np.random.default_rng(n).integers(0, 500, n + 1) for n in range(40)]
    wanted = [session.run(None, {"ids": ids})[0] for ids in feeds]
    kept, wrong = [], []
    rests = threading.Barrier(THREADS + 1)

    def work(thread: int) -> None:
        for runs in (WARM_UP, RUNS - WARM_UP):
            for k in range(runs // THREADS + 1):
                which = (k * 7 + thread) % len(feeds)
                y = session.run(None, {"ids": feeds[which]})[0]
                if y.tobytes() != wanted[which].tobytes():
                    wrong.append(which)
                if keep:
                    kept.append(y)
            rests.wait()
            rests.wait()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    sizes = []
    for _ in range(2):
        rests.wait()
        sizes.append(resident())
        rests.wait()
    for thread in threads:
        thread.join()
    return {"growth": sizes[1] - sizes[0], "wrong": len(wrong)}


def in_a_process(keep: bool) -> dict[str, int]:
    program = f"import json; from tests.test_native_threads import hammer; print(json.dumps(hammer({keep})))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
def test_ten_thousand_runs_on_sixteen_threads():
    found = in_a_process(keep=False)
    assert found["wrong"] == 0
    assert found["growth"] < MOST_GROWTH


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
def test_control_what_is_kept_is_seen():
    assert in_a_process(keep=True)["growth"] > 2 * MOST_GROWTH
