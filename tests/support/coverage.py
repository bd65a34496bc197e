"""Line coverage of the quick tests. The rest is left out, because tracing would cost too much there.

Tests of the real server are not measured in any case: its processes are others. So the figure says how much of the
code the fast unit tests reach, and its floor that this does not shrink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.sets import is_quick

IS_MEASURED = os.environ.get("ARCPIPE_TEST_COVERAGE") not in (None, "", "0")


class QuickCoverage:
    """Measure from now on, except while a test runs that is not a quick one.

    To be made before the first import of arcpipe: lines of a module are run when it is imported.
    """

    def __init__(self) -> None:
        from coverage import Coverage

        self._coverage = Coverage(data_suffix=True)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if is_quick(item):
            return (yield)
        self._coverage.stop()
        try:
            return (yield)
        finally:
            self._coverage.start()

    def pytest_unconfigure(self) -> None:
        self._coverage.stop()
        self._coverage.save()
