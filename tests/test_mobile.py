"""`make mobile` must have verified something: here it says on what, and fails where that is nothing."""

from __future__ import annotations

import os

import pytest

from roast_export import runtime_executorch
from roast_export.all_runtimes import optional_runtimes

RUNTIMES = [
    *optional_runtimes(),
    *runtime_executorch.runtimes(),
    *runtime_executorch.xnnpack_runtimes(native=False),
]
REASONS = {runtime.name: runtime.unavailable for runtime in RUNTIMES}


def verdict(reasons: dict[str, str | None]) -> tuple[bool, str]:
    """Whether anything can be verified, and a line for each runtime."""
    lines = [f"{name}: {reason or 'available'}" for name, reason in reasons.items()]
    return any(reason is None for reason in reasons.values()), "\n".join(lines)


@pytest.mark.skipif("ROAST_MOBILE" not in os.environ, reason="only `make mobile` installs these runtimes")
def test_something_was_verified():
    verified, lines = verdict({name: reason() for name, reason in REASONS.items()})
    print(lines)  # noqa: T201
    assert verified, lines


def test_control_nothing_verified_is_a_failure():
    assert verdict({"a": "a is missing; run `make mobile`", "b": "no b"})[0] is False
    assert verdict({"a": None, "b": "no b"}) == (True, "a: available\nb: no b")
