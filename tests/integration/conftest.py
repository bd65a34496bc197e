"""Fixtures for tests of a running server. Each module that uses them has a `server` of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.http import Client
from tests.support.server import Server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A new connection to the module's server."""
    with server.client() as client:
        yield client
