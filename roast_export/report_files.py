"""A report as one HTML page, or as JUnit XML for continuous integration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree

from jinja2 import Environment, StrictUndefined

from roast_export.report import Check, Report
from roast_export.report_text import (
    bytes_text,
    check_groups,
    failure_text,
    has_values,
    number,
    ordered_failures,
    seconds_text,
    shape_text,
    verdict,
)


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its label, what it says, and its length in percent of the longest."""

    label: str
    text: str
    percent: float


def to_html(report: Report) -> str:
    """One page that needs nothing else: no scripts, no network; light and dark."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "bytes": bytes_text,
        "seconds": seconds_text,
        "shape": shape_text,
        "number": number,
        "failure": failure_text,
    }
    page.tests["compared"] = has_values
    source = files("roast_export").joinpath("report.html.j2").read_text(encoding="utf-8")
    return page.from_string(source).render(
        report=report,
        verdict=verdict(report),
        state="passed" if report.passed else "failed" if report.failures else "unverified",
        groups=check_groups(report.checks),
        failures=ordered_failures(report),
        charts=_charts(report),
    )


def _charts(report: Report) -> dict[str, list[Bar]]:
    """Bars by title; a chart without two bars to compare is left out."""
    sizes = {"dense": report.dense_bytes, "exported": report.file_bytes}
    sizes |= {"array": report.array_bytes, "never compressed": report.kept_bytes}
    charts = {"Bytes on disk": _bars({k: (float(v), bytes_text(v)) for k, v in sizes.items() if v})}
    known = [item for item in report.measurements if item.load_peak_bytes]
    charts["Resident memory after runs"] = _bars(
        {m.path: (float(m.run_resident_bytes), bytes_text(m.run_resident_bytes)) for m in known}
    )
    charts["Peak memory at load"] = _bars(
        {m.path: (float(m.load_peak_bytes), bytes_text(m.load_peak_bytes)) for m in known}
    )
    charts["Latency of one run"] = _bars(
        {m.path: (m.run_seconds, seconds_text(m.run_seconds)) for m in report.measurements}
    )
    return {title: bars for title, bars in charts.items() if len(bars) > 1}


def _bars(values: dict[str, tuple[float, str]]) -> list[Bar]:
    longest = max((value for value, _ in values.values()), default=0.0) or 1.0
    return [Bar(label, text, 100 * value / longest) for label, (value, text) in values.items()]


def to_junit(report: Report) -> str:
    """JUnit XML: one suite for each runtime, one test case for each check, skipped runtimes as skipped."""
    root = ElementTree.Element(
        "testsuites",
        name=f"roast-export {report.path}",
        tests=str(len(report.checks) + len(report.skipped)),
        failures=str(len(report.failures)),
        skipped=str(len(report.skipped)),
        time=f"{report.seconds:.3f}",
    )
    for runtime in dict.fromkeys(check.runtime for check in report.checks):
        checks = [check for check in report.checks if check.runtime == runtime]
        failed = sum(not check.passed for check in checks)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml_text(runtime),
            tests=str(len(checks)),
            failures=str(failed),
            skipped="0",
        )
        for check in checks:
            _add_case(suite, check)
    for name, reason in report.skipped.items():
        name = _xml_text(name)
        suite = ElementTree.SubElement(root, "testsuite", name=name, tests="1", failures="0", skipped="1")
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="available")
        ElementTree.SubElement(case, "skipped", message=_xml_text(reason))
    root.set("name", _xml_text(root.get("name", "")))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_xml_text(f"{check.runtime}.{check.kind}"),
        name=_xml_text(f"{check.name}: {check.case}"),
    )
    if check.passed:
        return
    ElementTree.SubElement(case, "failure", message=_xml_text(failure_text(check)))


def _xml_text(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold even escaped (its section 2.2)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
