"""How many states of a disk the power-cut tests try."""

from __future__ import annotations

import os

import pytest

DEFAULT_STATES = 8000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-states",
        type=int,
        default=int(os.environ.get("ARCPIPE_CRASH_STATES", DEFAULT_STATES)),
        help="disk states after power cuts to try, in all (also: ARCPIPE_CRASH_STATES)",
    )


@pytest.fixture(scope="session")
def crash_states(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--crash-states"))
