"""One server for all tests of a module, each of which writes to a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.server import Server

_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one worker. A module whose server has other settings has a fixture of its own."""
    with Server(tmp_path_factory.mktemp("shared"), server_workers=1) as server:
        yield server
        server.stop()


@pytest.fixture
def database() -> str:
    """A name that nobody had before."""
    return f"db{next(_numbers)}"
