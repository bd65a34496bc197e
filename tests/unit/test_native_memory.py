"""The native kernel when memory runs out: each allocation fails once, and nothing is half done. And it loses none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.kernel import kernel_of_checkout
from tests.support.program import ROOT


@pytest.mark.parametrize(
    "check",
    [
        *("claim into an empty table", "claim into a table that grows", "claim into a large table"),
        *("entry", "head", "rows", "losses"),
    ],
)
def test_what_has_no_memory_leaves_nothing_half_done(check: str) -> None:
    pytest.importorskip("_testcapi", reason="this Python has no module that lets allocations fail")
    kernel_of_checkout()
    command = [sys.executable, "-m", "tests.unit.kernel_memory", check]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stderr
