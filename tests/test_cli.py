"""The commands: exit codes, messages, and that a refusal writes and loses nothing."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from roast_export import cli, compress, save
from roast_export.errors import VerificationError
from roast_export.export import TARGETS
from roast_export.report import Check, Report

X = ["--input", "input:float32[2,64]"]
COMMANDS = [cli.export_command, cli.verify_command, cli.inspect_command, cli.compress_command]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()


def roast(seed: int = 0) -> nn.Module:
    return compress(network(seed), 10, min_params=400, seed=seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Model files of every kind, good and bad."""
    folder = tmp_path_factory.mktemp("models")
    torch.save(roast(), folder / "pickled.pt")
    torch.save(roast(1), folder / "other.pt")
    torch.save(network(), folder / "dense.pt")
    torch.save(network().state_dict(), folder / "state.pt")
    save(roast(), folder / "archive.pt", (torch.randn(2, 64),))
    (folder / "truncated.pt").write_bytes((folder / "archive.pt").read_bytes()[:3000])
    (folder / "text.pt").write_text("this is not a model\n")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "bare.pt").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    np.savez(folder / "in.npz", input=np.ones((2, 64), np.float32))
    np.savez(folder / "wrong.npz", input=np.ones((2, 63), np.float32))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def export(*arguments: object) -> Result:
    return run(cli.export_command, *arguments)


def assert_refused(result: Result, says: str) -> None:
    """Exit 1 and one message, without a traceback."""
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert says in errors[0]
    assert "Traceback" not in result.output
    assert "bug in roast-export" not in result.output


def test_an_archive_needs_nothing_but_its_name(files, here):
    result = export(files / "archive.pt")
    assert result.exit_code == 0, result.output
    assert (here / "archive.onnx").is_file()
    assert result.stdout.splitlines()[-1].startswith("PASSED: ")
    assert "Traceback" not in result.output
    steps = result.stderr.splitlines()
    assert len(set(steps)) == len(steps)
    assert all(line.endswith(" ...") for line in steps)


@pytest.mark.parametrize("suffix", [".html", ".json", ".xml", ".txt"])
def test_a_pickled_module_with_its_input_dynamic_and_a_report(files, here, suffix):
    options = ["--dynamic", "input:0=batch", "--opset", "18", "-o", "out.onnx", "--report", f"r{suffix}"]
    result = export(files / "pickled.pt", "--trust", *X, *options)
    assert result.exit_code == 0, result.output
    assert "float32[batch, 64]" in result.stdout
    assert str(files / "pickled.pt") in result.stdout
    assert (here / f"r{suffix}").stat().st_size > 100
    assert sorted(path.name for path in here.iterdir()) == sorted(["out.onnx", f"r{suffix}"])


def test_inputs_from_a_file_and_materialized_weights(files, here):
    result = export(
        files / "pickled.pt", "--trust", "--inputs", files / "in.npz", "--weights", "materialized"
    )
    assert result.exit_code == 0, result.output
    assert "RoastGatherFolded" in result.stdout


def test_no_verify_says_so(files, here):
    result = export(files / "archive.pt", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "NOT VERIFIED" in result.stdout


REFUSED = [
    (["missing.pt"], "missing.pt"),
    (["truncated.pt"], "truncated"),
    (["text.pt"], "text file"),
    (["empty.pt"], "empty"),
    (["bare.pt"], "--trust"),
    (["."], "folder"),
    (["pickled.pt", *X], "--trust"),
    (["state.pt", *X], "--model"),
    (["state.pt", *X, "--model", "nothing"], "package.module:factory"),
    (["state.pt", *X, "--model", "no_such_module:f"], "cannot be imported"),
    (["dense.pt", "--trust", *X], "compress it first"),
    (["pickled.pt", "--trust"], "--input"),
    (["pickled.pt", "--trust", "--input", "input:float33[2]"], "unknown dtype 'float33'"),
    (["pickled.pt", "--trust", "--input", "input"], "NAME:DTYPE[DIMS]"),
    (["pickled.pt", "--trust", "--input", "other:float32[2,64]"], "other"),
    (["pickled.pt", "--trust", "--input", "input:float32[2,63]"], "does not run on"),
    (["pickled.pt", "--trust", "--inputs", "wrong.npz"], "does not run on"),
    (["pickled.pt", "--trust", "--inputs", "none.npz"], "none.npz does not exist"),
    (["pickled.pt", "--trust", *X, "--dynamic", "input:7=batch"], "no axis 7"),
    (["pickled.pt", "--trust", *X, "--dynamic", "x:0=batch"], "no input 'x'"),
    (["pickled.pt", "--trust", *X, "--dynamic", "input:1=width"], "fixed by the model"),
    (["archive.pt", "--opset", "7"], "opset 7"),
    (["archive.pt", "--opset", "seven"], "seven"),
    (["archive.pt", "--to", "flash"], "flash"),
    (["archive.pt", "--weights", "heavy"], "heavy"),
    (["archive.pt", "--report", "r.pdf"], "must end in one of"),
    (["archive.pt", "--unknown"], "--unknown"),
    ([], "MODEL"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_bad_input_is_refused_with_one_message_and_loses_nothing(files, here, arguments, says):
    (here / "out.onnx").write_text("what was there before")
    names = {path.name for path in files.iterdir()} | {"missing.pt", "none.npz"}
    arguments = [str(files / a) if a in names else a for a in arguments]
    result = export(*arguments, *(["-o", "out.onnx"] if arguments else []))
    assert_refused(result, says)
    assert [path.name for path in here.iterdir()] == ["out.onnx"]
    assert (here / "out.onnx").read_text() == "what was there before"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(files, here):
    assert_refused(export(files / "archive.pt", "-o", here / "none" / "out.onnx"), "does not exist")
    assert_refused(export(files / "archive.pt", "-o", here), "is a folder")
    before = (files / "archive.pt").read_bytes()
    assert_refused(export(files / "archive.pt", "-o", files / "archive.pt"), "is the model itself")
    assert (files / "archive.pt").read_bytes() == before
    assert list(here.iterdir()) == []


def test_a_mismatch_exits_2_with_the_report_and_no_file(files, here, monkeypatch):
    def differs(model, path, **options):
        check = Check("onnxruntime native", "weight", "0.weight", "all elements", 9, False, 0, (1,), 0.5, 1.5)
        raise VerificationError("the file does not match", Report("m", str(path), "onnx", checks=[check]))

    monkeypatch.setattr(cli, "export", differs)
    result = export(files / "archive.pt", "--report", "r.txt")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: the file does not match"
    assert "FAIL onnxruntime native, weight 0.weight" in result.stdout
    assert "FAILED" in (here / "r.txt").read_text()
    assert [path.name for path in here.iterdir()] == ["r.txt"]


def _fail(error: BaseException):
    def fail(*arguments, **options):
        raise error

    return fail


def test_an_unexpected_error_is_one_line_and_debug_shows_where(files, here, monkeypatch):
    monkeypatch.setattr(cli, "export", _fail(ZeroDivisionError("oh")))
    result = export(files / "archive.pt")
    assert result.exit_code == 1
    assert (
        result.stderr == "error: ZeroDivisionError: oh; this is a bug in roast-export, --debug shows where\n"
    )
    debug = export(files / "archive.pt", "--debug")
    assert debug.exit_code == 1
    assert "Traceback" in debug.stderr
    assert "--debug" not in debug.stderr.splitlines()[-1]


def test_an_interrupt_exits_130(files, here, monkeypatch):
    monkeypatch.setattr(cli, "export", _fail(KeyboardInterrupt()))
    result = export(files / "archive.pt")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in result.output


def test_a_report_that_cannot_be_written_is_said(files, here):
    (here / "file").write_text("")
    assert_refused(
        export(files / "archive.pt", "--report", here / "file" / "r.txt"), "report cannot be written"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_version_and_missing_arguments(command):
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert command.name in shown.stdout or "Usage" in shown.stdout
    assert run(command, "--version").exit_code == 0
    assert_refused(run(command), "Missing")


def test_the_runtimes_of_this_machine_are_listed():
    result = export("--runtimes")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "onnxruntime portable: usable" in lines
    assert all(": usable" in line or ": not usable: " in line for line in lines)


def test_verify_tells_the_right_model_from_another(files, here):
    assert export(files / "archive.pt", "-o", "a.onnx").exit_code == 0
    right = run(cli.verify_command, files / "archive.pt", "a.onnx", "--runtime", "onnxruntime portable")
    assert right.exit_code == 0, right.output
    wrong = run(cli.verify_command, files / "other.pt", "a.onnx", "--trust", *X, "--report", "r.html")
    assert wrong.exit_code == 2, wrong.output
    assert "FAIL " in wrong.stdout
    assert "not proved equal" in wrong.stderr
    assert (here / "r.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["archive.pt", "gone.onnx"], "gone.onnx does not exist"),
        (["archive.pt", "text.pt"], "not an ONNX model"),
        (["missing.pt", "text.pt"], "missing.pt"),
        (["archive.pt", "text.pt", "--atol", "-1"], "-1"),
        (["archive.pt", "archive.pt", "text.pt", "--report", "r.csv"], "must end in one of"),
        (["archive.pt"], "EXPORTED"),
    ],
)
def test_verify_refuses(files, here, arguments, says):
    arguments = [str(files / a) if a.endswith((".pt", ".onnx")) else a for a in arguments]
    assert_refused(run(cli.verify_command, *arguments), says)


def test_inspect_shows_both_kinds_of_file(files, here):
    assert export(files / "archive.pt").exit_code == 0
    exported = run(cli.inspect_command, "archive.onnx")
    assert exported.exit_code == 0, exported.output
    assert "0.weight" in exported.stdout
    assert "portable path: yes" in exported.stdout
    archive = run(cli.inspect_command, files / "archive.pt")
    assert archive.exit_code == 0, archive.output
    assert "2 virtual parameters" in archive.stdout
    assert "0.bias" in archive.stdout
    assert_refused(run(cli.inspect_command, files / "pickled.pt"), "--trust")
    assert_refused(run(cli.inspect_command, files / "missing.pt"), "missing.pt does not exist")


def test_compress_writes_an_archive_that_exports(files, here):
    options = ["--ratio", "10", "--min-params", "400", *X]
    result = run(cli.compress_command, files / "dense.pt", "--trust", *options)
    assert result.exit_code == 0, result.output
    assert "2 virtual parameters" in result.stdout
    exported = export("dense.roast.pt")
    assert exported.exit_code == 0, exported.output
    assert "PASSED" in exported.stdout


def test_compress_of_a_state_dict_with_its_factory(files, here):
    (here / "my_factory.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))\n"
    )
    options = ["--ratio", "10", "--min-params", "400", "--exclude", "2.*", "--model", "my_factory:make"]
    result = run(cli.compress_command, files / "state.pt", *options, *X, "-o", "c.pt")
    assert result.exit_code == 0, result.output
    assert "excluded" in result.stdout
    assert (here / "c.pt").is_file()


def test_compress_options_reach_the_array(files, here):
    options = ["--trust", "--ratio", "10", "--min-params", "400"]
    shown = [
        run(cli.compress_command, files / "dense.pt", *options, *more).stdout
        for more in ([], ["--init", "fresh"], ["--half"])
    ]
    assert "float16 slots" in shown[2]
    assert "float16" not in shown[0] + shown[1]
    assert shown[0] != shown[1], "a fresh array has other scales"


def test_compress_without_inputs_shows_the_table_and_writes_nothing(files, here):
    result = run(cli.compress_command, files / "dense.pt", "--trust", "--ratio", "10", "--min-params", "400")
    assert result.exit_code == 0, result.output
    assert "nothing written" in result.stdout
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dense.pt", "--trust", "--ratio", "0.5"], "at least 1"),
        (["dense.pt", "--trust"], "--ratio"),
        (["dense.pt", "--ratio", "10"], "--trust"),
        (["dense.pt", "--trust", "--ratio", "10"], "no parameter is left"),
        (["dense.pt", "--trust", "--ratio", "10", "--include", "zzz"], "fits no parameter"),
        (["pickled.pt", "--trust", "--ratio", "10"], "compressed already"),
        (["dense.pt", "--trust", "--ratio", "10", "-o", "c.pt"], "without example inputs"),
    ],
)
def test_compress_refuses(files, here, arguments, says):
    extra = [] if "no parameter" not in says else ["--min-params", "100000"]
    result = run(
        cli.compress_command,
        *[files / a if a in ("dense.pt", "pickled.pt") else a for a in arguments],
        *extra,
    )
    assert_refused(result, says)
    assert list(here.iterdir()) == []


def spawn(here: Path, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom roast_export.cli import export_command\nexport_command()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)


def test_a_real_process_is_calm(files, here):
    child = spawn(here, files / "archive.pt")
    assert child.returncode == 0, child.stderr
    assert all(line.endswith(" ...") for line in child.stderr.splitlines()), child.stderr
    assert "PASSED" in child.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_full_disk_keeps_what_was_there(files, here):
    (here / "archive.onnx").write_text("what was there before")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    child = spawn(here, files / "archive.pt", before=limit)
    assert child.returncode == 1, child.stderr
    assert "Traceback" not in child.stderr
    assert "error: " in child.stderr.splitlines()[-1]
    assert [path.name for path in here.iterdir()] == ["archive.onnx"]
    assert (here / "archive.onnx").read_text() == "what was there before"


@pytest.mark.parametrize("target", ["ort", "web", "torchscript", "lite", "pt2"])
def test_every_target_from_an_archive(files, here, target):
    exported = here / f"exported{TARGETS[target]}"
    result = export(files / "archive.pt", "--to", target, "-o", exported)
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.stdout
    wrong = run(cli.verify_command, files / "other.pt", exported, *X, "--trust")
    assert wrong.exit_code == 2, wrong.output


def test_one_table_over_many_files(files, here):
    for target in ("onnx", "torchscript", "pt2"):
        assert export(files / "archive.pt", "--to", target, "--no-verify", "-o", here / target).exit_code == 0
    result = run(
        cli.verify_command, files / "archive.pt", *(here / t for t in ("onnx", "torchscript", "pt2")),
        "--report", here / "r.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 files" in result.stdout
    assert {line.split()[0] for line in result.stdout.splitlines() if line.endswith(" pass")} == {
        "onnx", "torchscript", "pt2",
    }  # fmt: skip
    assert "torchscript" in (here / "r.html").read_text(encoding="utf-8")


def test_a_bundle_is_a_folder(files, here):
    result = export(files / "archive.pt", "--bundle", "web", "-o", here / "page")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (here / "page").iterdir()}
    assert {"model.onnx", "model.json", "golden.json", "README.md"} <= names
    assert_refused(
        export(files / "archive.pt", "--bundle", "web", "-o", here / "page"), "not an empty folder"
    )
    assert_refused(export(files / "archive.pt", "--bundle", "web", "--to", "lite"), "--bundle chooses")
    assert [path.name for path in here.iterdir()] == ["page"]
