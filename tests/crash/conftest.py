"""The number of disk states that the power-cut tests try, and their place."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import io_faults
from tests.crash.numbered import KilledServers

DEFAULT_STATES = 10_000


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


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: for tests that have their own idea of what a disk does."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def faulty_io_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return io_faults.build(tmp_path_factory.mktemp("faulty_io"))


@pytest.fixture
def faults(faulty_io_library: Path, tmp_path: Path) -> io_faults.FaultyIO:
    """Has system calls of a server fail, once its `variables` are the server's."""
    return io_faults.FaultyIO(faulty_io_library, tmp_path)


@pytest.fixture(scope="session")
def killed_servers(tmp_path_factory: pytest.TempPathFactory) -> KilledServers:
    return KilledServers(tmp_path_factory.mktemp("killed"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Recovery says a line per file; some tests have it recover a hundred thousand."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
