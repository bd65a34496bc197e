"""Names of databases: which names a client, a token or an operator may use.

The rule is that of the HTTP API. A name in a WAL file of Arc may be any other text, and is stored all the same.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DATABASE_BYTES: Final = 128
"""Bytes of a database's name in UTF-8, at most: it has a place in shared memory, and is in each entry of the WAL."""

DATABASE_RULE: Final = (
    f"use 1 to {MAX_DATABASE_BYTES} bytes of UTF-8 without control characters or '/', and neither '.' nor '..'"
)
"""The end of errors about such names."""

_DATABASE: Final = re.compile(r"(?!\.{1,2}\Z)[^/\x00-\x1f\x7f-\x9f]+\Z")


def is_database_name(name: str) -> bool:
    """Return whether a database may have this name."""
    if _DATABASE.match(name) is None:
        return False
    try:
        return len(name.encode()) <= MAX_DATABASE_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False
