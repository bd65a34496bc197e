"""Line coverage of the quick tests. The rest is left out, because tracing would cost too much there.

Tests of the real server are not measured in any case: its processes are others. Property tests are not either: they
run the same lines hundreds of times. Of a test with hundreds of cases each process measures its first ones. So the
figure says how much of the code the fast examples reach, and its floor that this does not shrink.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import is_hypothesis_test

from tests.support.sets import is_quick

IS_MEASURED = os.environ.get("ARCPIPE_TEST_COVERAGE") not in (None, "", "0")
_CASES: Final = 2
"""Cases of one test that a process measures."""


class QuickCoverage:
    """Measure the imports of arcpipe, and then each quick test.

    To be made before the first import of arcpipe: lines of a module are run when it is imported.
    """

    def __init__(self) -> None:
        from coverage import Coverage

        self._coverage = Coverage(data_suffix=True)
        self._coverage.start()
        package = importlib.import_module("arcpipe")
        for module in pkgutil.walk_packages(package.__path__, "arcpipe."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        self._coverage.stop()
        self._cases: Counter[str] = Counter()  # that were measured, by test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test = item.nodeid.partition("[")[0]
        if not is_quick(item) or is_hypothesis_test(getattr(item, "obj", None)) or self._cases[test] == _CASES:
            return (yield)
        self._cases[test] += 1
        self._coverage.start()
        try:
            return (yield)
        finally:
            self._coverage.stop()

    def pytest_unconfigure(self) -> None:
        self._coverage.save()
