"""How the program loads its libraries, in a process of its own: what it leaves out, and that garbage is looked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.program import ROOT


def says(code: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    ).stdout.split()


@pytest.mark.parametrize(("first", "is_loaded"), [("", True), ("libraries.leave_out_unused()", False)])
def test_arrow_loads_pandas_unless_it_is_left_out(first: str, is_loaded: bool) -> None:
    """The tests' environment has pandas, so the first case shows what the second would miss."""
    array = "import pyarrow as pa; pa.array([1])"
    code = f"from arcpipe import libraries; {first}\n{array}\nimport sys; print('pandas' in sys.modules)"
    assert says(code) == [str(is_loaded)]


def test_what_is_loaded_is_out_of_the_collector_which_goes_on() -> None:
    code = """
import gc
from arcpipe import libraries
try:
    with libraries.loading():
        print(gc.isenabled())
        raise ImportError
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert says(code) == ["False", "True", "True"]
