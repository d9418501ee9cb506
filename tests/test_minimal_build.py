"""custom_ops/minimal: what decides that a build is there, and that nothing half-done passes for one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

CUSTOM_OPS = Path(__file__).parent.parent / "custom_ops"
sys.path.insert(0, str(CUSTOM_OPS / "minimal"))
building = importlib.import_module("build_minimal")
BuildError, Commands = building.BuildError, building.Commands

TARGETS = """Translation-en|Debian|Debian|http://mirror.example/debian/
Packages|Debian|Debian-Security|http://mirror.example/security/
Packages|Node|node|http://other.example/node/
Packages|Debian|Debian|http://mirror.example/debian/
Packages|Debian|Debian|http://second.example/debian/"""


def test_the_mirror_is_the_one_that_apt_uses():
    assert building.mirror_of(TARGETS) == "http://mirror.example/debian/"


@pytest.mark.parametrize("listing", ["", "Packages|Debian|Debian-Security|http://mirror.example/security/"])
def test_no_mirror_is_an_error_with_a_next_step(listing):
    with pytest.raises(BuildError, match="no Debian mirror on this machine; add one"):
        building.mirror_of(listing)


@pytest.mark.parametrize("missing", ["debootstrap", "unshare", "cc"])
def test_what_the_machine_lacks_is_named(monkeypatch, missing):
    monkeypatch.setattr(building.os, "geteuid", lambda: 0)
    monkeypatch.setattr(building.platform, "system", lambda: "Linux")
    monkeypatch.setattr(building.shutil, "which", lambda name: None if name == missing else f"/bin/{name}")
    assert f"{missing} is missing; run `apt-get install" in str(building.complaint())
    monkeypatch.setattr(building.shutil, "which", lambda name: f"/bin/{name}")
    assert building.complaint() is None
    monkeypatch.setattr(building.os, "geteuid", lambda: 1000)
    assert "run it as root" in str(building.complaint())


def test_a_failed_command_shows_what_it_said(tmp_path):
    commands = Commands(tmp_path / "log.txt")
    commands.run(["sh", "-c", "echo before"])
    with pytest.raises(
        BuildError, match=r"(?s)no such thing.*sh ended with status 3; see .*log\.txt"
    ) as caught:
        commands.run(["sh", "-c", "echo no such thing >&2; exit 3"])
    assert "before" not in str(caught.value)
    assert "before" in (tmp_path / "log.txt").read_text()


def fake_steps(monkeypatch: pytest.MonkeyPatch, failing: str | None = None) -> list[str]:
    """Steps that only leave their folders; `failing` stops in the middle. Returns those begun."""
    begun: list[str] = []

    def step(name, work):
        def run(*arguments):
            begun.append(name)
            work(*arguments)
            if name == failing:
                raise BuildError(f"{name} failed")

        monkeypatch.setattr(building, name, run)

    def system(commands, root):
        part = root.with_name("x.part")
        (part / "build" / "onnxruntime-9.8.7").mkdir(parents=True)
        if failing != "make_system":
            part.rename(root)

    def library(commands, root, part):
        part.mkdir(exist_ok=True)
        (part / building.LIBRARY).write_bytes(b"12345")

    step("make_system", system)
    step("compile_library", lambda *_: None)
    step("collect", library)
    step("check", lambda *_: None)
    return begun


def test_a_build_says_what_it_is_and_leaves_nothing_else(monkeypatch, tmp_path):
    begun = fake_steps(monkeypatch)
    building.build_runtime(Commands(tmp_path / "log.txt"), tmp_path, 2)
    assert begun == ["make_system", "compile_library", "collect", "check"]
    facts = json.loads((tmp_path / "runtime" / "facts.json").read_text())
    assert (facts["onnxruntime"], facts["bytes"]) == ("9.8.7", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["runtime"]
    assert building.is_built(tmp_path, building.recipe())


@pytest.mark.parametrize("failing", ["make_system", "compile_library", "collect", "check"])
def test_a_failed_step_leaves_no_build(monkeypatch, tmp_path, failing):
    fake_steps(monkeypatch, failing)
    with pytest.raises(BuildError, match=f"{failing} failed"):
        building.build_runtime(Commands(tmp_path / "log.txt"), tmp_path, 2)
    assert not (tmp_path / "runtime").exists()
    assert not building.is_built(tmp_path, building.recipe())


def test_a_second_run_does_what_was_left_undone(monkeypatch, tmp_path):
    fake_steps(monkeypatch, "collect")
    with pytest.raises(BuildError, match="collect failed"):
        building.build_runtime(Commands(tmp_path / "log.txt"), tmp_path, 2)
    begun = fake_steps(monkeypatch)
    building.build_runtime(Commands(tmp_path / "log.txt"), tmp_path, 2)
    assert begun == ["compile_library", "collect", "check"], "the system was there"


def test_another_recipe_is_another_build(monkeypatch, tmp_path):
    fake_steps(monkeypatch)
    building.build_runtime(Commands(tmp_path / "log.txt"), tmp_path, 2)
    monkeypatch.setattr(building, "OPTIONS", (*building.OPTIONS, "-Dmore=ON"))
    assert not building.is_built(tmp_path, building.recipe())


@pytest.mark.parametrize(
    ("said", "status", "accepted"),
    [
        ("ONNX format model is not supported in this build.", 1, True),
        ("the protobuf cannot be parsed", 1, False),
        ("ONNX format model is not supported in this build.", 0, False),
    ],
)
def test_a_build_that_reads_onnx_files_is_not_taken(tmp_path, said, status, accepted):
    loader = tmp_path / "loader"
    loader.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {status}\n")
    loader.chmod(0o755)
    if accepted:
        building.check(tmp_path, tmp_path / "ort_run")
    else:
        with pytest.raises(BuildError, match="no minimal build"):
            building.check(tmp_path, tmp_path / "ort_run")
