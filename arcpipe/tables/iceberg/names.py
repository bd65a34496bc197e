"""Names of namespaces and tables: reversible, and such that catalogue and engines take them.

A name is kept where it can be. Any other byte of its UTF-8 becomes `_x` and two hexadecimal digits: `http.requests` is
`http_x2erequests`. An underscore that would be read as the beginning of such a piece becomes `_x5f`, so that different
names stay different. One that is too long is cut, and ends in `_x7e` (a `~`) and a hash; such a table's properties tell
the whole name.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import Final

DATABASE: Final = "arcpipe.database"
MEASUREMENT: Final = "arcpipe.measurement"
"""Properties of a table: the names as clients call them."""

# Glue and Athena take no more than these. Others keep capitals, as engines with quoted names can tell them apart.
_NARROW: Final = re.compile(rb"[^a-z0-9_]|_(?=x[0-9a-f]{2})")
_WIDE: Final = re.compile(rb"[^A-Za-z0-9_-]|_(?=x[0-9a-f]{2})")
_ENCODED: Final = re.compile(rb"_x([0-9a-f]{2})")
_MOST: Final = 200  # characters; catalogues take 255, and a prefix may come before


def encode(name: str, *, narrow: bool) -> str:
    """Make the name of a namespace or a table.

    Args:
        narrow: for catalogues that take lower-case letters only.
    """
    pattern = _NARROW if narrow else _WIDE
    encoded = pattern.sub(lambda found: b"_x%02x" % found[0][0], name.encode()).decode()
    if len(encoded) > _MOST:
        return f"{encoded[:150]}_x7e{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return encoded


def decode(encoded: str) -> str:
    """Return the name that was encoded. One that was cut keeps its hash; one of somebody else's stays as it is."""
    with suppress(UnicodeDecodeError):
        return _ENCODED.sub(lambda found: bytes.fromhex(found[1].decode()), encoded.encode()).decode()
    return encoded
