"""Names out of a file that somebody else wrote can neither move a terminal's cursor nor forge a line."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import torch
from torch import nn

import roast_export
from roast_export.cli_command import RoastCommand
from roast_export.matrix import Matrix
from roast_export.printable import message, one_line, printable, to_json
from roast_export.report import Check, Layer, Report

HOSTILE = "w\x1b[2K\r\x1b[1A\nPASSED: 162 checks in onnxruntime native; 1.0 s\n\u202edessaP\x9b1m\ud800\x00"
BAD = set("\x1b\r\x9b\u202e\ud800\x00\u2028\x85")


def forged(text):
    """What a terminal would obey, or a line that only a name could have begun."""
    return [c for c in text if c in BAD] + [x for x in text.splitlines() if x.startswith("PASSED: 162")]


def hostile_report():
    check = Check(HOSTILE, "output", HOSTILE, HOSTILE, 6, False, 1e-6, (0,), 1.0, 2.0, note=HOSTILE)
    layer = Layer(HOSTILE, HOSTILE, (20, 30), 1024, (16, 16), 0.03, HOSTILE)
    return Report(
        HOSTILE, HOSTILE, HOSTILE, [layer], checks=[check, replace(check, passed=True)],
        skipped={HOSTILE: HOSTILE}, inputs={HOSTILE: HOSTILE}, warnings=[HOSTILE],
    )  # fmt: skip


def test_control_the_search_finds_what_is_shown_raw():
    assert len(forged(HOSTILE)) >= 6


def test_one_line():
    assert one_line("encoder.layer.0 ü 字 a\\b") == "encoder.layer.0 ü 字 a\\b"
    assert one_line("a\nb\x1b[0m\u202e\ud800") == r"a\nb\x1b[0m\u202e\ud800"
    assert forged(one_line(HOSTILE)) == []
    assert one_line(one_line(HOSTILE)) == one_line(HOSTILE)


def test_a_message_of_several_lines_is_indented():
    assert message("refused:\nPASSED\x1b") == "refused:\n  PASSED\\x1b"


def test_printable_leaves_the_report_that_it_copies():
    report = hostile_report()
    assert printable(report).layers[0].name == one_line(HOSTILE)
    assert report.layers[0].name == HOSTILE


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".html", ".xml", ".json"])
def test_every_form_of_a_report(tmp_path, suffix, several):
    report = hostile_report()
    shown = Matrix(HOSTILE, [report, report], [HOSTILE]) if several else report
    path = tmp_path / f"r{suffix}"
    shown.save(path)
    text = path.read_text(encoding="utf-8")
    assert forged(text) == []
    assert forged(str(shown)) == []
    if suffix == ".xml":
        ElementTree.fromstring(text)
    if suffix == ".json":
        # Programs get the names as they are, but for the lone surrogate that UTF-8 cannot hold.
        assert json.loads(text)["model"] == HOSTILE


def strict(text):
    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_bare_nan(tmp_path):
    values = {"a": float("nan"), "b": [float("inf"), (-float("inf"), 1.5)]}
    assert strict(to_json(values)) == {"a": "NaN", "b": ["Infinity", ["-Infinity", 1.5]]}
    with pytest.raises(ValueError, match="NaN"):
        strict(json.dumps(values))
    report = hostile_report()
    report.checks = [replace(report.checks[0], expected=float("nan"), bound=float("inf"))]
    report.save(tmp_path / "r.json")
    assert strict((tmp_path / "r.json").read_text())["checks"][0]["expected"] == "NaN"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and its ONNX file in which every name that a file may choose is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    model = roast_export.compress(nn.Sequential(nn.Linear(40, 60)).eval(), 8)
    roast_export.save(model, folder / "m.pt", (torch.randn(2, 40),))
    roast_export.export(model, folder / "m.onnx", example_inputs=(torch.randn(2, 40),), verify=False)
    proto = onnx.load(folder / "m.onnx")
    name = HOSTILE.replace("\ud800", "")
    for node in proto.graph.node:
        node.name = name
    proto.graph.name = name
    entry = proto.metadata_props.add()
    entry.key = entry.value = name
    (folder / "hostile.onnx").write_bytes(proto.SerializeToString())
    return folder


@pytest.mark.parametrize("command", ["roast-verify m.pt hostile.onnx", "roast-inspect hostile.onnx"])
def test_commands_on_a_hostile_file(folder, command):
    name, *files = command.split()
    program = [str(Path(sys.executable).parent / name), *(str(folder / file) for file in files)]
    done = subprocess.run(program, capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "dessaP" in out + err, "the name is shown"
    assert forged(out) == []
    assert forged(err) == []
    assert done.returncode == (0 if name == "roast-inspect" else 2), out + err


def test_messages_and_logs_of_a_command(capfd):
    # Without the surrogate, which pytest's own copy of the log cannot hold.
    hostile = HOSTILE.replace("\ud800", "")

    def fail():
        logging.getLogger("roast_export").warning(hostile)
        raise roast_export.RoastError(hostile)

    with pytest.raises(SystemExit) as ended:
        RoastCommand("fail", callback=fail).main([])
    assert ended.value.code == 1
    shown = capfd.readouterr().err
    assert "dessaP" in shown
    assert forged(shown) == []
