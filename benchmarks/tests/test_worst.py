"""Bodies that hold the interpreter."""

from __future__ import annotations

import pytest

from benchmarks.worst.bodies import CASES
from benchmarks.worst.gil import measure


@pytest.mark.parametrize("case", CASES)
def test_each_body_that_may_keep_the_interpreter_is_encoded_or_refused(case: str) -> None:
    found = measure(case, 300_000)
    assert found["worst_ms"] >= 0
    assert found["seconds"] >= 0
