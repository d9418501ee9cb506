"""Commands work in a child process: files that hold it up, fill the memory or end it are no proof."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import roast_export
from roast_export import budget, watched
from roast_export.files import replacing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, its file, and copies of that file in which 0 is added to the output, in a costly way."""
    folder = tmp_path_factory.mktemp("watched")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    model, x = roast_export.compress(network, 10, min_params=400), torch.randn(2, 64)
    roast_export.save(model, folder / "m.pt", (x,))
    roast_export.export(model, folder / "good.onnx", example_inputs=(x,), verify=False)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, []),
        ],
    )
    constants = {"yes": np.array(True), "zero": np.float32(0), "many": np.array([3 << 28])}
    added(folder, "loop", [helper.make_node("Loop", ["", "yes", "zero"], ["added"], body=body)], constants)
    large = [
        helper.make_node("ConstantOfShape", ["many"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["added"], keepdims=0),
    ]
    added(folder, "large", large, constants)
    return folder


def added(folder, name, nodes, constants):
    model = onnx.load(folder / "good.onnx")
    graph, last = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{last}_" if output == last else output for output in node.output]
    graph.node.extend([*nodes, helper.make_node("Add", [f"{last}_", "added"], [last])])
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.save(model, folder / f"{name}.onnx")


def roast_verify(folder, name, **limits):
    code = "import sys; from roast_export.cli import verify_command; sys.exit(verify_command())"
    command = [sys.executable, "-c", code, "m.pt", name, "--runtime", "onnxruntime portable"]
    environment = {**os.environ, **limits, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


def test_a_loop_without_end_is_ended_and_the_file_is_not_proved(files):
    done = roast_verify(files, "loop.onnx", **{budget.SECONDS: "10"})
    assert done.returncode == 2
    assert re.search(
        rf"error: loop\.onnx: a step .* more than 10 s, .* not proved.*{budget.SECONDS}", done.stderr
    )
    assert "PASSED" not in done.stdout


def test_memory_that_a_graph_asks_for_is_limited(files):
    """Three GiB, which most machines have: only the limit refuses them."""
    done = roast_verify(files, "large.onnx", **{budget.MEMORY: "2"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "allocate memory" in done.stdout
    assert "not proved equal" in done.stderr


def test_control_a_good_file_passes_in_a_child(files):
    done = roast_verify(files, "good.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def in_child(act):
    """What the first process says and ends with, while the child does something."""
    said: list[str] = []
    status = watched.in_child(said.append)
    if status is None:
        try:
            os._exit(act() or 0)
        finally:
            os._exit(99)
    return status, said


def ended_by(number):
    with watched.comparing(Path("the.onnx")):
        os.kill(os.getpid(), number)
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_file_that_ends_the_process_is_not_proved(number):
    status, said = in_child(lambda: ended_by(number))
    assert status == 2
    assert f"the.onnx: comparing it ended the process ({number.name}), so it is not proved" in said[0]


def test_a_command_that_is_ended_before_a_file_is_opened_says_so():
    status, said = in_child(lambda: os.kill(os.getpid(), signal.SIGKILL) or time.sleep(60))
    assert status == 1
    assert said[0].startswith("the command was ended by SIGKILL while it read or ran MODEL")


def test_the_output_of_an_export_that_is_ended_goes_with_it(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"before")

    def act():
        with replacing(tmp_path / "m.onnx") as path:
            path.write_bytes(b"half")
            assert len(list(tmp_path.iterdir())) == 2
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)

    assert in_child(act)[0] == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("command", ["export", "verify", "inspect", "compress"])
def test_a_model_that_ends_the_process_is_one_message_of_every_command(tmp_path, command):
    """torch's own operators crash over some values."""
    code = (
        "import os, signal; from roast_export import cli, cli_options\n"
        "def load(*args, **kwargs): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "cli_options.load = cli.inspect = cli.look = load\n"
        f"cli.{command}_command()"
    )
    (tmp_path / "m.pt").write_bytes(b"model")
    (tmp_path / "m.onnx").write_bytes(b"file")
    after = [str(tmp_path / "m.onnx")] if command == "verify" else []
    arguments = ["--ratio", "8"] if command == "compress" else []
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.pt"), *after, *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, "ended by SIGSEGV" in run.stderr) == (1, True), run.stderr
    assert run.stderr.count("\n") == 1


def test_the_status_of_a_child_is_handed_on():
    assert in_child(lambda: 7) == (7, [])


def test_the_clock_stands_for_the_model_and_begins_anew_at_each_step(monkeypatch):
    monkeypatch.setenv(budget.SECONDS, "2")

    def act():
        with watched.comparing(Path("the.onnx")):
            with watched.resting():
                time.sleep(3)
            for _ in range(4):
                time.sleep(1)
                watched.step()
        time.sleep(3)
        return 7

    assert in_child(act) == (7, [])


def test_what_a_child_leaves_in_its_folder_goes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def act():
        tempfile.mkdtemp()
        assert len(list(Path(tempfile.gettempdir()).iterdir())) == 1
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    assert in_child(act)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_the_limits_of_this_process_come_back():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with watched._memory(1 << 40):
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_where_the_first_process_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        watched.in_child(lambda said: None)
        os.write(write, b"%d" % os.getpid())
        time.sleep(60)
        os._exit(0)
    os.close(write)
    child = int(os.read(read, 20))
    os.close(read)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


def test_the_second_interrupt_ends_a_child_that_does_not_listen():
    first = os.getpid()

    def act():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(2):
            time.sleep(0.3)
            os.kill(first, signal.SIGINT)
        time.sleep(60)

    assert in_child(act) == (128 + signal.SIGINT, [])
