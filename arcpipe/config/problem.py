"""A problem of settings in combination."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A problem with the value of `key`, given the values of `with_keys`."""

    key: str
    reason: str
    with_keys: tuple[str, ...] = ()
