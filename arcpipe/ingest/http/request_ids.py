"""Request ids: accepting those of clients, and making others.

An id goes into the log, into the access log and into the header of an answer. So only harmless ones are accepted:
short, and of characters without a meaning in any of the three.
"""

from __future__ import annotations

import os
import re
from itertools import count
from typing import Final

HEADER: Final = b"x-request-id"

_ID: Final = rb"[A-Za-z0-9._~:/+=@-]{1,128}"
_HARMLESS: Final = re.compile(_ID + rb"\Z")
VALUE: Final = re.compile(_ID + rb"(?=\r\n)")
"""An id up to the end of its line in a head."""

# Random bytes of an id's first half. Two of a million workers, of all nodes and times, share one with probability
# 0.2%.
_PREFIX_BYTES: Final = 6


def is_harmless(value: bytes) -> bool:
    """Return whether a client's id is accepted."""
    return _HARMLESS.match(value) is not None


class RequestIds:
    """Makes ids that no other worker makes: a random prefix and a number."""

    def __init__(self) -> None:
        self._format = os.urandom(_PREFIX_BYTES).hex().encode("ascii") + b"-%x"
        self._numbers = count(1)

    def new(self) -> bytes:
        """Make an id."""
        return self._format % next(self._numbers)
