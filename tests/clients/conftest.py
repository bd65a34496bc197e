"""A server for the clients of a module."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.server import Server

_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("clients"), server_workers=1) as server:
        yield server
        server.stop()


@pytest.fixture
def database() -> str:
    """A name that nobody had before."""
    return f"db-{next(_numbers)}"
