"""custom_ops/cross: what the libraries for other platforms are made of, and what they may show and need."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulated import BUILD

CUSTOM_OPS = Path(__file__).parent.parent / "custom_ops"
sys.path.insert(0, str(CUSTOM_OPS / "cross"))
build, platforms, symbols = map(importlib.import_module, ("build", "platforms", "symbols"))

PLATFORMS, Platform = platforms.PLATFORMS, platforms.Platform
ENTRY, complaints, declared, defined = (
    symbols.ENTRY, symbols.complaints, symbols.declared, symbols.defined
)  # fmt: skip

HEADER = CUSTOM_OPS / "roast_kernel.h"
EXPECTED = {ENTRY, "roast_version"}
GOOD = """extern "C" {{
{show} int RegisterCustomOps() {{ return 1; }}
{show} int roast_version() {{ return 2; }}
{more}
}}"""
SHOW = {"dll": "__declspec(dllexport)"}
TARGETS = {
    "so": "aarch64-linux-android",
    "dylib": "aarch64-macos.11.0",
    "dll": "x86_64-windows-gnu",
    "a": "aarch64-ios.13.0",
}


def make(folder: Path, kind: str, more: str = "") -> Path:
    """A small library of one kind, whose source has `more` in it."""
    pytest.importorskip("ziglang", reason="the package ziglang is missing; run `make cross`")
    pytest.importorskip("lief", reason="the package lief is missing; run `make cross`")
    show = SHOW.get(kind, '__attribute__((visibility("default")))')
    source, library = folder / "source.cc", folder / f"library.{kind}"
    source.write_text(GOOD.format(show=show, more=more.replace("SHOW", show)))
    sources = [source, CUSTOM_OPS / "cross" / "windows_entry.cc"] if kind == "dll" else [source]
    command = [
        *(build._zig(), "build-lib", "-target", TARGETS[kind], "-static" if kind == "a" else "-dynamic"),
        *("-O", "ReleaseFast", "-fstrip", f"-femit-bin={library}", "-fallow-shlib-undefined"),
        *("--cache-dir", folder / "c", "--global-cache-dir", BUILD / "cross" / ".zig"),
        *("-cflags", "-fvisibility=hidden", "--", *sources),
    ]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return library


@pytest.mark.parametrize("kind", TARGETS)
def test_a_library_that_shows_what_it_should_is_accepted(kind, tmp_path):
    hidden = "int roast_hidden() { return 3; }"
    assert complaints(make(tmp_path, kind, hidden), EXPECTED) == []


@pytest.mark.parametrize("kind", TARGETS)
def test_control_a_function_too_many_is_refused(kind, tmp_path):
    library = make(tmp_path, kind, "SHOW int roast_extra() { return 3; }")
    assert complaints(library, EXPECTED) == ["exports roast_extra, which is internal"]


@pytest.mark.parametrize("kind", TARGETS)
def test_control_a_missing_function_is_refused(kind, tmp_path):
    found = complaints(make(tmp_path, kind), {*EXPECTED, "roast_more"})
    assert found == ["does not export roast_more"]


# A DLL with an unknown function cannot even be linked; for macOS nor can a library.
@pytest.mark.parametrize("kind", ["so", "a"])
def test_control_a_function_from_elsewhere_is_refused(kind, tmp_path):
    more = "int strange(int); SHOW int roast_calls() { return strange(1); }"
    found = complaints(make(tmp_path, kind, more), {*EXPECTED, "roast_calls"})
    assert found == ["needs strange from somebody else"]


def test_the_kernel_header_is_read():
    names = declared(HEADER)
    assert {"roast_plan_init", "roast_gather_part", "roast_linear_part", "roast_available_isas"} <= names
    assert names == set(re.findall(r"\b(roast_\w+)\(", HEADER.read_text()))


def test_what_only_training_needs_is_left_out():
    assert defined(build.TRAINING)
    assert defined(build.TRAINING) < declared(HEADER)
    assert defined(CUSTOM_OPS / "roast_dispatch.cc") == {"roast_available_isas", "roast_force_isa"}


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_every_source_of_the_library_is_built(platform):
    cmake = (CUSTOM_OPS / "CMakeLists.txt").read_text()
    expected = set(re.findall(r"\b(?:roast|ort)_\w+\.cc\b", cmake)) - {
        "ort_abi_check.cc",
        build.TRAINING.name,
    }
    if platform.target.startswith("aarch64"):
        expected.remove("roast_isa_portable.cc")
    groups = build.sources(CUSTOM_OPS, platform)
    built = [path.name for paths in groups.values() for path in paths if path.parent == CUSTOM_OPS]
    assert sorted(built) == sorted(expected)


def test_phones_desktops_and_boards_are_among_the_platforms():
    names = [platform.name for platform in PLATFORMS]
    assert len(set(names)) == len(names)
    android = {"android-arm64-v8a", "android-armeabi-v7a", "android-x86_64"}
    apple = {"ios-arm64", "ios-arm64-static", "macos-arm64", "macos-x86_64"}
    others = {"linux-arm64", "linux-x86_64", "windows-arm64", "windows-x86_64"}
    assert android | apple | others <= set(names)


def test_the_libraries_are_the_ones_in_the_index():
    index = BUILD / "cross" / "libraries.json"
    if not index.is_file():
        pytest.skip(f"{index} is missing; run `make cross`")
    entries = json.loads(index.read_text())
    assert set(entries) == {platform.name for platform in PLATFORMS}
    for platform in PLATFORMS:
        library = index.parent / platform.name / platform.file
        content = library.read_bytes()
        assert hashlib.sha256(content).hexdigest() == entries[platform.name]["sha256"]
        assert len(content) == entries[platform.name]["bytes"] <= platform.limit


def test_control_a_library_that_is_too_large_is_removed(tmp_path):
    library = make(tmp_path, "so")
    platform = Platform("small", TARGETS["so"], library.name, limit=100)
    with pytest.raises(RuntimeError, match=r"small: library.so .* has \d+ bytes, more than 100"):
        build.check(platform, library)
    assert not library.exists()


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(RuntimeError, match="ziglang is missing; run `make cross`"):
        build._zig()
