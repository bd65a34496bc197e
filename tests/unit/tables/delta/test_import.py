"""deltalake is loaded at the first checkpoint only: it panics in a process that was forked after its import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.program import ROOT

PROGRAM = """
import os, sys
from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables import open_format
tables = open_format(Tables(format="delta"), Storage(url="file://" + sys.argv[1]), sys.argv[1])
tables.check()
tables.close()
assert "deltalake" not in sys.modules and "pyiceberg" not in sys.modules
"""


@pytest.mark.slow
def test_tables_are_opened_without_deltalake(tmp_path: object) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, check=True)
