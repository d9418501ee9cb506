"""The project's own promises: one version, short files, the public names and their arguments."""

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import roast_export
from roast_export import budget
from roast_export.export import TARGETS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LONGEST = 450
SOURCES = [
    path
    for folder in ("roast_export", "custom_ops")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".h", ".cc", ".txt", ".cmake", ".json", ".html", ".jinja")
]

CONTRACT = {
    "compress": "model, ratio=100, *, seed=0, min_params=2048, include=None, exclude=None, local=False",
    "load": "path, *, model=None, trust=False",
    "summary": "model",
    "save": "model, path, example_inputs",
    "export": "model, path, *, to='onnx', example_inputs=None, dynamic_shapes=None, opset=None, "
    "weights='virtual', verify=True",
    "verify": "model, path, *, example_inputs=None, runtimes=None, atol=None, rtol=None",
    "create_session": "path, sess_options=None, **kw",
    "ort_library_path": "",
    "torch_library_path": "",
}


def states_version(text: str, version: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", text) is not None


def first_difference(function: object, promised: str) -> str:
    """Empty if `function` can be called exactly as promised: names, order, kinds, defaults.

    It may take more keyword arguments after those, as long as each has a default.
    """
    actual = list(inspect.signature(function).parameters.values())
    scope: dict[str, object] = {}
    exec(f"def promise({promised}): pass", scope)
    for number, wanted in enumerate(inspect.signature(scope["promise"]).parameters.values()):
        if wanted.kind is wanted.VAR_KEYWORD:
            continue
        if number >= len(actual):
            return f"no argument {wanted.name}"
        given = actual[number]
        if (given.name, given.kind, given.default) != (wanted.name, wanted.kind, wanted.default):
            return f"argument {given} where {wanted} was promised"
    surplus = (p for p in actual if p.name not in inspect.signature(scope["promise"]).parameters)
    needed = [p.name for p in surplus if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return f"needs {needed[0]}, which was not promised" if needed else ""


def test_the_version_is_the_installed_one():
    assert roast_export.__version__ == PROJECT["version"] == importlib.metadata.version("roast-export")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_version_stands_in_pyproject_only(path):
    assert not states_version(path.read_text(encoding="utf-8"), PROJECT["version"])


def test_the_changelog_knows_the_version():
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_fits_a_head(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.name} has {lines} lines: split it"


@pytest.mark.parametrize("name", CONTRACT)
def test_the_public_names_keep_their_promise(name):
    assert name in roast_export.__all__
    assert first_difference(getattr(roast_export, name), CONTRACT[name]) == ""


def test_every_public_name_exists():
    assert len(set(roast_export.__all__)) == len(roast_export.__all__)
    assert [name for name in roast_export.__all__ if not hasattr(roast_export, name)] == []


@pytest.mark.parametrize("command", ["roast-export", "roast-verify", "roast-inspect", "roast-compress"])
def test_the_commands_exist(command):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    assert callable(script.load())


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_starts_with_the_commands_that_work(command):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_block = re.search(r"```\w*\n(.*?)```|\n((?: {4}.*\n)+)", text, re.DOTALL)
    assert first_block
    assert command in first_block[0]


@pytest.mark.parametrize(
    ("text", "stated"),
    [("version = 9.8.7", True), ("v9.8.7-rc", True), ("19.8.7", False), ("9.8.70", False), ("9.8", False)],
)
def test_control_a_stated_version_is_found(text, stated):
    assert states_version(text, "9.8.7") is stated


@pytest.mark.parametrize(
    "function",
    [
        lambda model: None,
        lambda model, ratio=10: None,
        lambda ratio, model: None,
        lambda model, ratio=100, flag=0: None,
        lambda model, ratio=100, *, seed=1: None,
        lambda model, ratio=100, *, seed=0, more: None,
    ],
)
def test_control_another_signature_is_refused(function):
    assert first_difference(function, "model, ratio=100, *, seed=0")


def test_control_more_options_are_accepted():
    def compress(model, ratio=100, *, seed=0, dry=False):
        pass

    assert first_difference(compress, "model, ratio=100, *, seed=0") == ""


def test_the_security_page_names_every_limit_and_every_target():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    limits = [value for value in vars(budget).values() if str(value).startswith("ROAST_LIMIT")]
    suffixes = [suffix for target, suffix in TARGETS.items() if target != "aoti"]
    assert limits
    assert [word for word in [*limits, *suffixes, "AOTInductor"] if word not in page] == []
