"""How the tests are spread over workers, and what many files of tests share."""

from __future__ import annotations

import importlib

import pytest

from roast_export.report import Measurement


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a file is a group, unless a test of it names another."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof without its measurement: fresh processes take seconds, and test_measure.py has them."""
    verifying = importlib.import_module("roast_export.verify")
    monkeypatch.setattr(verifying, "measure", lambda *a, label, **k: Measurement(label, 1.0, 1, 1, 1, 1.0))
