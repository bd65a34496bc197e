"""The fixtures of these tests alone: what they import takes seconds.

SQLite runs all tests of each catalogue; the others run those marked `every_catalogue`, and all in the release set.
"""

import pytest

from tests.support.iceberg import iceberg_rest, postgresql, world
from tests.support.sets import IS_LONG

__all__ = ["iceberg_rest", "postgresql", "world"]

CATALOGUES = ("sqlite", "postgresql", "glue", "rest")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        is_for_all = IS_LONG or metafunc.definition.get_closest_marker("every_catalogue") is not None
        metafunc.parametrize("world", CATALOGUES if is_for_all else CATALOGUES[:1], indirect=True)
