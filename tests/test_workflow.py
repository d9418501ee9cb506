"""docs/workflow.yml is a workflow, and every command and option in it is one that there is."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from roast_export import cli, cli_options
from roast_export.all_runtimes import all_runtimes
from roast_export.export import TARGETS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "workflow.yml").read_text(encoding="utf-8")
COMMANDS = {
    "roast-export": cli.export_command,
    "roast-verify": cli.verify_command,
    "roast-inspect": cli.inspect_command,
    "roast-compress": cli.compress_command,
}


def calls(text):
    """Every call of our commands in the steps of a workflow, as words."""
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    lines = [line for step in steps for line in step.get("run", "").splitlines()]
    return [words for line in lines if (words := shlex.split(line)) and words[0] in COMMANDS]


def complaints(words):
    """What is wrong with a call: an option that there is not, a value it does not take, no arguments."""
    command = COMMANDS[words[0]]
    options = {name: option for option in command.params for name in option.opts if name.startswith("-")}
    found, rest = [], words[1:]
    positional = 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            positional += 1
            continue
        option = options.get(word)
        if option is None:
            found.append(f"{words[0]} has no option {word}")
        elif not option.is_flag:
            value = rest.pop(0) if rest else ""
            kinds = {"--require": {r.name for r in all_runtimes()}, "--to": set(TARGETS)}
            if value not in kinds.get(word, {value}) or not value:
                found.append(f"{word} does not take {value!r}")
            if word == "--report" and Path(value).suffix not in cli_options.REPORT_SUFFIXES:
                found.append(f"{word} does not take {value!r}")
    needed = sum(isinstance(p, click.Argument) and p.required for p in command.params)
    if positional < needed and "--runtimes" not in words:
        found.append(f"{words[0]} needs {needed} arguments")
    return found


def test_every_call_is_one_that_the_command_takes():
    found = calls(TEXT)
    assert {words[0] for words in found} == {"roast-export", "roast-verify"}
    assert [complaint for words in found for complaint in complaints(words)] == []


def test_it_has_junit_a_page_and_the_assertion():
    reports = {
        Path(words[words.index("--report") + 1]).suffix for words in calls(TEXT) if "--report" in words
    }
    assert reports == {".xml", ".html"}
    assert "assert_export_matches" in TEXT
    uses = re.findall(r"uses: (\S+)", TEXT)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in uses)
    assert "actions/upload-artifact@v4" in uses
    workflow = yaml.safe_load(TEXT)
    assert workflow["permissions"] == {"contents": "read"}
    assert "push" in workflow[True], "yaml reads `on` as true"


def test_it_is_named_in_the_docs():
    assert "workflow.yml" in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("roast-verify a.pt b.onnx --require tensorrt", "does not take 'tensorrt'"),
        ("roast-verify a.pt b.onnx --report r.pdf", "does not take 'r.pdf'"),
        ("roast-verify a.pt", "needs 2 arguments"),
        ("roast-export a.pt --to flash", "does not take 'flash'"),
        ("roast-export a.pt --unknown", "no option --unknown"),
    ],
)
def test_control_a_wrong_call_is_seen(line, says):
    text = f"jobs: {{a: {{steps: [{{run: '{line}'}}]}}}}"
    (words,) = calls(text)
    assert any(says in complaint for complaint in complaints(words))
