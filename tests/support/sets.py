"""The sets of tests: which of them run now."""

from __future__ import annotations

import os

import pytest

IS_LONG = os.environ.get("ARCPIPE_TEST_LONG") not in (None, "", "0")
"""Whether tests may take many minutes."""

long = pytest.mark.skipif(not IS_LONG, reason="of the long set: ARCPIPE_TEST_LONG=1")
"""Marks what other tests of its kind show too: it is not in each run of CI."""
