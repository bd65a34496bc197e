"""The actions of arcpipe's commits: lines of JSON, as the log has them. Pure but for the clock and random ids."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final, Literal

import orjson

from arcpipe import __version__
from arcpipe.clock import now_us
from arcpipe.tables.base import NewFile, TableName
from arcpipe.tables.delta.columns import new_fields, schema_of
from arcpipe.tables.delta.paths import path_of, root_of
from arcpipe.tables.delta.state import State, app_id
from arcpipe.tables.delta.stats import stats_of

Operation = Literal["WRITE", "OPTIMIZE", "DELETE"]

DATABASE: Final = "arcpipe.database"
MEASUREMENT: Final = "arcpipe.measurement"
"""Properties of arcpipe's tables: the names as clients call them."""

# VACUUM of others deletes what is in no table and older than this, so a file may wait for its commit for so long.
_LEAST_RETENTION_HOURS: Final = 7 * 24


def commit_info(operation: Operation, state: State | None) -> bytes:
    """Return what the history of the table says of a commit."""
    info: dict[str, Any] = {
        "timestamp": _now_ms(),
        "operation": operation,
        "operationParameters": {"mode": "Append", "partitionBy": "[]"} if operation == "WRITE" else {},
        "isBlindAppend": operation == "WRITE",
        "engineInfo": f"arcpipe/{__version__}",
        "txnId": str(uuid.uuid4()),
    }
    if state is not None:
        info["readVersion"] = state.version
    return _line("commitInfo", info)


def marker(node: str, seq: int) -> bytes:
    """Set the marker of a node."""
    return _line("txn", {"appId": app_id(node), "version": seq, "lastUpdated": _now_ms()})


def additions(
    table: TableName, state: State | None, files: Sequence[NewFile], history_hours: int, *, data_change: bool = True
) -> list[bytes]:
    """Add files, after the table or the columns that they need.

    Args:
        data_change: whether the rows are new. Those of merged files were in the table before.

    Raises:
        Refused: a file does not fit the table.
    """
    lines: list[bytes] = []
    if state is None:
        lines.append(_line("protocol", {"minReaderVersion": 1, "minWriterVersion": 2}))
        lines.append(_line("metaData", _metadata(table, files, history_hours)))
    elif added := new_fields(table, state.fields, files):
        lines.append(_line("metaData", state.metadata | {"schemaString": schema_of([*state.fields, *added])}))
    root, now_ms = root_of(table), _now_ms()
    for file in files:
        add = {
            "path": path_of(root, file.key),
            "partitionValues": {},
            "size": file.size,
            "modificationTime": now_ms,
            "dataChange": data_change,
            "stats": stats_of(file.metadata, file.rows),
        }
        lines.append(_line("add", add))
    return lines


def removal(path: str, size: int, *, data_change: bool) -> bytes:
    """Take a file out, by its path in the log."""
    remove = {
        "path": path,
        "deletionTimestamp": _now_ms(),
        "dataChange": data_change,
        "extendedFileMetadata": True,
        "partitionValues": {},
        "size": size,
    }
    return _line("remove", remove)


def _metadata(table: TableName, files: Sequence[NewFile], history_hours: int) -> dict[str, Any]:
    """Return the metadata of a new table. It has no partitions: see `docs/tables.md`."""
    retention = max(history_hours + 24, _LEAST_RETENTION_HOURS)
    return {
        "id": str(uuid.uuid4()),
        "name": table[1],
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema_of(new_fields(table, [], files)),
        "partitionColumns": [],
        "configuration": {
            DATABASE: table[0],
            MEASUREMENT: table[1],
            "delta.logRetentionDuration": f"interval {history_hours} hours",
            "delta.deletedFileRetentionDuration": f"interval {retention} hours",
        },
        "createdTime": _now_ms(),
    }


def _now_ms() -> int:
    return now_us() // 1000


def _line(kind: str, content: dict[str, Any]) -> bytes:
    return orjson.dumps({kind: content})
