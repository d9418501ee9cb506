"""The report as text, HTML, JSON and JUnit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from roast_export.report import Check, Layer, Measurement, Report
from roast_export.report_files import to_html, to_junit
from roast_export.report_text import (
    MAX_LAYERS,
    WIDTH,
    bytes_text,
    check_groups,
    failure_text,
    ordered_failures,
    render,
    verdict,
)

EQUAL = Check("onnxruntime native", "weight", "fc2.weight", "all elements", 600, True)
CLOSE = Check(
    "onnxruntime native", "output", "logits", "x[3,8] random", 30, True, 1e-5, (2, 9), 1.25, 1.250001
)
WRONG_BITS = replace(EQUAL, passed=False, index=(1, 2), expected=0.5, actual=0.75)
TOO_FAR = replace(CLOSE, passed=False, actual=2.0)
TOO_LARGE = Check("file", "size", "at most the limit", "file", 1, False, note="9,000 bytes, 8,000 allowed")


def layer(name: str) -> Layer:
    return Layer(name, "RoastGather", (20, 30), 1024, (16, 16), 0.03, "fc1.memory")


def report(*checks: Check, layers: int = 3) -> Report:
    return Report(
        model="digits.pt",
        path="digits.onnx",
        target="onnx",
        layers=[layer(f"fc{k}.weight") for k in range(1, layers + 1)],
        file_bytes=5000,
        array_bytes=4096,
        kept_bytes=300,
        limit_bytes=70000,
        checks=list(checks),
        skipped={"onnx reference": "too large"},
        measurements=[Measurement("native", 0.02, 10 << 20, 12 << 20, 11 << 20, 0.004)],
        inputs={"x": "float32[batch, 8]"},
        warnings=["the array holds 3 NaN"],
        seconds=1.5,
    )


PASSED = report(EQUAL, CLOSE)
FAILED = report(TOO_LARGE, TOO_FAR, EQUAL, WRONG_BITS)


def test_text_says_everything_that_was_found():
    text = render(PASSED)
    for part in [
        "digits.pt -> digits.onnx",
        "x: float32[batch, 8]",
        "5,000",
        "4,096",
        "fc3.weight",
        "equal bits",
        "1.25 in PyTorch, 1.250001 here",
        "logits[2,9]",
        "20 ms",
        "not used: onnx reference: too large",
        "warning: the array holds 3 NaN",
    ]:
        assert part in text
    assert "FAIL" not in text
    assert text.splitlines()[-1] == "PASSED: 2 checks in onnxruntime native; 1.5 s"
    assert text.isascii()


def test_dense_size_and_ratio_are_those_of_the_layers():
    text = render(PASSED)
    dense = 3 * 20 * 30 * 4 + 300
    assert f"{dense:,}" in text
    assert f"{dense / 5000:.4g}x" in text


def test_tables_fit_the_width():
    long = report(EQUAL, CLOSE)
    long.layers.append(layer("bert.encoder.layer.11.attention.output.dense." * 4 + "weight"))
    tables = [line for line in render(long).splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= WIDTH


def test_a_failed_report_names_the_first_layer_first():
    lines = render(FAILED).splitlines()
    failures = [line for line in lines if line.startswith("FAIL ")]
    assert [line.split(":")[0] for line in failures] == [
        "FAIL onnxruntime native, weight fc2.weight, all elements",
        "FAIL file, size at most the limit, file",
        "FAIL onnxruntime native, output logits, x[3,8] random",
    ]
    assert "[1,2] 0.5 in PyTorch, 0.75 here" in failures[0]
    assert "9,000 bytes, 8,000 allowed" in failures[1]
    assert lines[-1] == "FAILED: 3 of 4 checks; first weight fc2.weight in onnxruntime native"


def test_failures_follow_the_order_of_the_layers():
    late = replace(WRONG_BITS, name="fc3.weight")
    early = replace(WRONG_BITS, name="fc1.weight")
    names = [check.name for check in ordered_failures(report(TOO_FAR, late, WRONG_BITS, early))]
    assert names == ["fc1.weight", "fc2.weight", "fc3.weight", "logits"]


def test_failures_are_counted_beyond_the_first_few():
    many = [replace(WRONG_BITS, case=str(k)) for k in range(50)]
    text = render(report(*many))
    assert "... and 30 more failures" in text
    assert "FAILED: 50 of 50 checks" in text


def test_nothing_compared_is_not_a_pass():
    assert verdict(report()).startswith("NOT VERIFIED")
    assert verdict(report(replace(TOO_LARGE, passed=True))).startswith("NOT VERIFIED")


def test_a_check_that_could_not_run_shows_its_reason_and_no_values():
    broken = replace(
        CLOSE, passed=False, elements=0, index=(), expected=0.0, actual=0.0, note="out of memory"
    )
    assert failure_text(broken) == "out of memory"
    assert "out of memory" in to_html(report(broken))
    assert failure_text(replace(TOO_LARGE, note="", actual=9000, bound=8000)) == (
        "9,000 bytes, allowed are 8,000"
    )
    sign_of_zero = replace(WRONG_BITS, expected=0.0, actual=-0.0, note="1 of 600 differ")
    assert failure_text(sign_of_zero) == (
        "[1,2] 0 in PyTorch, -0 here, difference 0, allowed equal bits; 1 of 600 differ"
    )


@pytest.mark.parametrize(("layers", "hidden"), [(MAX_LAYERS, 0), (MAX_LAYERS + 60, 60)])
def test_long_layer_tables_are_cut_with_a_count(layers, hidden):
    text = render(report(EQUAL, layers=layers))
    assert f"Virtual weights: {layers}" in text
    assert (f"... {hidden} more ..." in text) == bool(hidden)
    assert f"fc{layers}.weight" in text
    assert text.count("RoastGather") == MAX_LAYERS


def test_the_worst_check_is_a_failure_even_if_another_differs_more():
    small = replace(CLOSE, passed=False, actual=1.26)
    large = replace(CLOSE, bound=10.0, actual=3.0)
    [group] = check_groups([large, small, CLOSE])
    assert group.worst is small
    assert (group.failed, group.elements, group.cases) == (1, 90, 1)


def test_nan_is_worse_than_any_number_unless_it_was_expected():
    nan = replace(CLOSE, passed=False, actual=math.nan)
    [group] = check_groups([TOO_FAR, nan])
    assert group.worst is nan
    both_infinite = replace(CLOSE, expected=math.inf, actual=math.inf)
    [group] = check_groups([both_infinite, CLOSE])
    assert group.worst is CLOSE


def test_memory_that_the_system_does_not_tell_is_no_number():
    unknown = replace(PASSED.measurements[0], load_resident_bytes=0, load_peak_bytes=0, run_resident_bytes=0)
    text = render(replace(PASSED, measurements=[unknown]))
    row = next(line for line in text.splitlines() if line.startswith(" native"))
    assert row.split() == ["native", "20", "ms", "-", "-", "-", "4", "ms"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (10239, "10,239 B"), (10240, "10 KiB"), (1 << 20, "1 MiB"), (5 << 30, "5 GiB")],
)
def test_sizes(size, text):
    assert bytes_text(size) == text


class Page(HTMLParser):
    """Tags, and every attribute through which a page could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("case", [PASSED, FAILED, report(), report(EQUAL, layers=100)])
def test_the_page_is_well_formed_and_loads_nothing(case):
    text = to_html(case)
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert verdict(case) in text


def test_control_a_page_that_loads_something_is_seen():
    assert Page('<img src="https://example.org/a.png"></img>').loads


def test_the_page_shows_bars_figures_and_failures():
    text = to_html(FAILED)
    assert text.count("<svg") >= 4
    assert "Failures, first layer first" in text
    assert text.index("fc2.weight</code></td><td>all elements") < text.index("9,000 bytes")
    assert "Failures" not in to_html(PASSED)


def test_the_page_escapes_what_comes_from_the_model():
    evil = replace(PASSED, path="<script>alert(1)</script>.onnx")
    evil.layers[0] = layer('<img src="x">')
    text = to_html(evil)
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_junit_has_a_case_for_each_check_and_counts_failures():
    root = ElementTree.fromstring(to_junit(FAILED))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("5", "3", "1")
    assert len(root.findall(".//testcase")) == 5
    messages = [failure.get("message") for failure in root.findall(".//failure")]
    assert len(messages) == 3
    assert any("[1,2] 0.5 in PyTorch, 0.75 here" in message for message in messages)
    assert root.find(".//skipped").get("message") == "too large"
    assert ElementTree.fromstring(to_junit(PASSED)).findall(".//failure") == []


def test_junit_survives_characters_that_xml_cannot_hold():
    odd = report(replace(WRONG_BITS, name="a\x00b<&\x1b", note="\ud800"))
    odd.skipped = {"x\x07": "\x01"}
    root = ElementTree.fromstring(to_junit(odd).encode("utf-8"))
    assert "a\\x00b<&\\x1b" in root.find(".//testcase").get("name")


@pytest.mark.parametrize(
    ("name", "start"),
    [("r.html", "<!doctype html>"), ("r.xml", "<?xml"), ("r.json", "{"), ("r.txt", "digits")],
)
def test_the_suffix_chooses_the_form(tmp_path, name, start):
    path = tmp_path / "new" / name
    FAILED.save(path)
    assert path.read_text(encoding="utf-8").startswith(start)


def test_json_holds_every_field(tmp_path):
    FAILED.save(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["passed"] is False
    assert len(found["checks"]) == 4
    assert found["dense_bytes"] == FAILED.dense_bytes
