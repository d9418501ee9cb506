"""A report as one HTML page, or as JUnit XML for continuous integration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined

from roast_export.printable import printable
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
    return page(
        "report.html.j2",
        report=report,
        verdict=verdict(report),
        state="passed" if report.passed else "failed" if report.failures else "unverified",
        groups=check_groups(report.checks),
        failures=ordered_failures(report),
        charts=_charts(report),
    )


def page(template: str, **values: Any) -> str:
    """A template of this package, filled in."""
    pages = Environment(
        loader=PackageLoader("roast_export", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "bytes": bytes_text,
        "seconds": seconds_text,
        "shape": shape_text,
        "number": number,
        "failure": failure_text,
    }
    pages.tests["compared"] = has_values
    return pages.get_template(template).render(**printable(values))


def _charts(report: Report) -> dict[str, list[Bar]]:
    """Bars by title; a chart without two bars to compare is left out."""
    sizes = {"dense": report.dense_bytes, "exported": report.file_bytes}
    sizes |= {"array": report.array_bytes, "never compressed": report.kept_bytes}
    charts = {"Bytes on disk": bars({k: (float(v), bytes_text(v)) for k, v in sizes.items() if v})}
    known = [item for item in report.measurements if item.load_peak_bytes]
    charts["Resident memory after runs"] = bars(
        {m.path: (float(m.run_resident_bytes), bytes_text(m.run_resident_bytes)) for m in known}
    )
    charts["Peak memory at load"] = bars(
        {m.path: (float(m.load_peak_bytes), bytes_text(m.load_peak_bytes)) for m in known}
    )
    charts["Latency of one run"] = bars(
        {m.path: (m.run_seconds, seconds_text(m.run_seconds)) for m in report.measurements}
    )
    return {title: found for title, found in charts.items() if len(found) > 1}


def bars(values: dict[str, tuple[float, str]]) -> list[Bar]:
    longest = max((value for value, _ in values.values()), default=0.0) or 1.0
    return [Bar(label, text, 100 * value / longest) for label, (value, text) in values.items()]


def to_junit(*reports: Report) -> str:
    """JUnit XML: one suite for each runtime of each file, one test case for each check, skips as skips."""
    # What printable() writes as an escape is what XML 1.0 cannot hold (its section 2.2).
    reports = printable(reports)
    checks = [check for report in reports for check in report.checks]
    skipped = sum(len(report.skipped) for report in reports)
    root = ElementTree.Element(
        "testsuites",
        name=f"roast-export {', '.join(report.path for report in reports)}",
        tests=str(len(checks) + skipped),
        failures=str(sum(not check.passed for check in checks)),
        skipped=str(skipped),
        time=f"{sum(report.seconds for report in reports):.3f}",
    )
    for report in reports:
        _add_suites(root, report, f"{report.path}: " if len(reports) > 1 else "")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_suites(root: ElementTree.Element, report: Report, prefix: str) -> None:
    for runtime in dict.fromkeys(check.runtime for check in report.checks):
        checks = [check for check in report.checks if check.runtime == runtime]
        failed = sum(not check.passed for check in checks)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=prefix + runtime,
            tests=str(len(checks)),
            failures=str(failed),
            skipped="0",
        )
        for check in checks:
            _add_case(suite, check)
    for name, reason in report.skipped.items():
        name = prefix + name
        suite = ElementTree.SubElement(root, "testsuite", name=name, tests="1", failures="0", skipped="1")
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="available")
        ElementTree.SubElement(case, "skipped", message=reason)


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{check.runtime}.{check.kind}",
        name=f"{check.name}: {check.case}",
    )
    if check.passed:
        return
    ElementTree.SubElement(case, "failure", message=failure_text(check))
