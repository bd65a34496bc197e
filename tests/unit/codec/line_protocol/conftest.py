"""These tests choose their paths, so a native kernel that is installed is not among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arcpipe.codec.line_protocol import body


@pytest.fixture(scope="package", autouse=True)
def no_installed_kernel() -> Iterator[None]:
    """Have `encode` read in Python, whatever is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "LINE_KERNEL", None)
        yield
