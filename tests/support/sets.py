"""The sets of tests: which of them run now.

- `quick`: unit tests that are not `slow`, and tests of the real server that are marked `smoke`; less than a minute.
- `full`: everything that is not `long`; what CI runs.
- `release`: everything.
"""

from __future__ import annotations

import os

import pytest

IS_LONG = os.environ.get("ARCPIPE_TEST_LONG") not in (None, "", "0")
"""Whether tests may take many minutes."""

long = pytest.mark.skipif(not IS_LONG, reason="of the release set: ARCPIPE_TEST_LONG=1")
"""Marks what other tests of its kind show too: it is not in each run of CI."""

_QUICK_DIRECTORIES = ("tests/unit/", "tests/repository/")


def is_quick(item: pytest.Item) -> bool:
    """Tell whether a test belongs to the quick set."""
    if item.get_closest_marker("smoke") is not None:
        return True
    return item.nodeid.startswith(_QUICK_DIRECTORIES) and item.get_closest_marker("slow") is None
