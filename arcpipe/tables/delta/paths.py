"""Where a table is in the store, and how its log names its files. Pure.

The root of a table is the folder of its measurement, with `_delta_log` in it. Its name has no percent sign, because
the readers that are made of delta-kernel-rs (deltalake, Polars, DuckDB) decode such a folder twice and find nothing.
The files that are in another folder, of a lake from before its tables, have a path that begins with `../../`.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final
from urllib.parse import quote, unquote

from arcpipe.lake.keys import decode_component, encode_database, encode_name
from arcpipe.tables.base import TableName, is_outside

LOG: Final = "_delta_log"
LAST_CHECKPOINT: Final = "_last_checkpoint"

_S3: Final = re.compile(r"s3[an]?://")
_UP: Final = "../../"
_SAFE: Final = "/=~!$&'()*+,;@"  # what a path of a URI has as it is; not the colon, which would end a scheme


def root_of(table: TableName) -> str:
    """Return the folder of a table, without a slash at its end."""
    database, measurement = table
    return f"{encode_database(database, '._~')}/{encode_name(measurement, '._~')}"


def table_of(root: str) -> TableName | None:
    """Return the names of the table in a folder; None if only its metadata tells them, as one of them was cut."""
    database, measurement = map(decode_component, root.split("/"))
    return None if database is None or measurement is None else (database, measurement)


def commit_key(root: str, version: int) -> str:
    """Return the key of a commit."""
    return f"{root}/{LOG}/{version:020}.json"


def path_of(root: str, key: str) -> str:
    """Return the path of a file in the log: a URI, relative to the root."""
    if key.startswith(f"{root}/"):
        return quote(key[len(root) + 1 :], safe=_SAFE)
    return _UP + quote(key, safe=_SAFE)


def key_of(root: str, path: str, store_url: str) -> str:
    """Return the key of a file by its path in the log; the absolute URI of a file outside of the store.

    Args:
        store_url: the location of the store, without a slash at its end, not encoded.
    """
    if is_outside(path):
        place = unquote(_S3.sub("s3://", path))
        if place.startswith("file:/") and not place.startswith("file://"):  # Java writes one slash
            place = f"file://{place[5:]}"
        return place[len(store_url) + 1 :] if place.startswith(f"{store_url}/") else path
    key = posixpath.normpath(f"{root}/{unquote(path)}")
    return f"{store_url}/{key}" if key == ".." or key.startswith("../") else key
