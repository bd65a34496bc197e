"""Bodies that hold the interpreter."""

from __future__ import annotations

import pytest

from benchmarks.worst.bodies import CASES
from benchmarks.worst.gil import measure
from benchmarks.worst.series import SERIES
from benchmarks.worst.telemetry import TELEMETRY
from tests.support.sets import long

MANY = {*TELEMETRY, *SERIES}  # some of them are of megabytes whatever their size


@pytest.mark.parametrize("case", [pytest.param(name, marks=long) if name in MANY else name for name in CASES])
def test_each_body_that_may_keep_the_interpreter_is_encoded_or_refused(case: str) -> None:
    found = measure(case, 300_000)
    assert found["worst_ms"] >= 0
    assert found["seconds"] >= 0
