"""Fixtures that every layer of the tests uses, and the choice of a set."""

import gc

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")  # so that its bare asserts say what they saw

from tests.support.coverage import IS_MEASURED, QuickCoverage  # noqa: E402
from tests.support.sets import is_quick  # noqa: E402

_coverage = QuickCoverage() if IS_MEASURED else None

pytest_plugins = [
    "tests.support.browser",
    "tests.support.clouds",
    "tests.support.s3faults",
    "tests.support.s3proxy",
    "tests.support.s3server",
    "tests.support.shared_server",
]

# No test depends on being fast.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--set", choices=["quick", "full"], default="full", help="which tests to run")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all is imported and collected, which stays
    if _coverage is not None:
        config.pluginmanager.register(_coverage, "quick coverage")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--set") == "quick":
        chosen = [item for item in items if is_quick(item)]
        config.hook.pytest_deselected(items=[item for item in items if not is_quick(item)])
        items[:] = chosen


def pytest_collection_finish() -> None:
    """Take a million objects of libraries and tests out of each later collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()
