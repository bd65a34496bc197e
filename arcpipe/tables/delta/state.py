"""The state of a table that a commit needs: its version, its columns, the markers; and how the log changes it. Pure.

A commit is lines of JSON, each with one action: `protocol`, `metaData`, `txn`, `add`, `remove` and some more. The
files of the table (`add`, `remove`) are left out here: a table has many, and a commit needs none of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import orjson

from arcpipe.tables.base import Refused
from arcpipe.tables.delta.columns import Fields, fields_of

_USUAL_VACUUM_SECONDS: Final = 7 * 86_400.0
_APP: Final = "arcpipe.node."
# Actions that do not change this state, as every writer begins their lines. They are most of the bytes.
_PASSED_OVER: Final = (b'{"add":', b'{"remove":', b'{"cdc":', b'{"commitInfo":')


def app_id(node: str) -> str:
    """Return the name under which a node's marker is in the log."""
    return _APP + node


@dataclass(frozen=True)
class State:
    """A table at one version. `markers` has those of foreign writers, too, by their application ids."""

    version: int
    digest: bytes  # of the commit that made this version; empty if that is not in the log any more
    protocol: dict[str, Any]
    metadata: dict[str, Any]
    markers: dict[str, int] = field(default_factory=dict)

    @cached_property
    def fields(self) -> Fields:
        """The columns. Raises ValueError: the schema cannot be read."""
        return fields_of(self.metadata["schemaString"])

    @property
    def configuration(self) -> dict[str, str]:
        return self.metadata.get("configuration") or {}

    def marker(self, node: str) -> int | None:
        return self.markers.get(app_id(node))

    def node_markers(self) -> dict[str, int]:
        """Return the markers of arcpipe's nodes, by node."""
        return {app[len(_APP) :]: marker for app, marker in self.markers.items() if app.startswith(_APP)}

    def after(self, version: int, commit: bytes) -> State:
        """Return the state that a commit makes of this one. Raises ValueError: it is no commit."""
        protocol, metadata, markers = self.protocol, self.metadata, self.markers
        for kind, action in actions_of(commit, _PASSED_OVER):
            if kind == "protocol":
                protocol = action
            elif kind == "metaData":
                metadata = action
            elif kind == "txn":
                if markers is self.markers:
                    markers = dict(markers)
                markers[str(action["appId"])] = int(action["version"])
        return State(version, digest_of(commit), protocol, metadata, markers)


EMPTY: Final = State(-1, b"", {}, {})
"""Before the first commit."""


def digest_of(commit: bytes) -> bytes:
    """Return what tells a commit from any other: a table that was dropped and made again has others."""
    return hashlib.blake2b(commit, digest_size=16).digest()


def actions_of(commit: bytes, passed_over: tuple[bytes, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the actions of a commit, each with its kind, without those whose lines begin with one of these.

    Raises:
        ValueError: a line is no action.
    """
    for number, line in enumerate(commit.split(b"\n"), 1):
        if not line.strip() or (passed_over and line.startswith(passed_over)):
            continue
        try:
            [(kind, action)] = orjson.loads(line).items()
        except (orjson.JSONDecodeError, AttributeError, ValueError) as error:
            raise ValueError(f"line {number} is no action: {error}") from error
        if isinstance(action, dict):
            yield kind, action


_TERM: Final = re.compile(r"(\d+)\s+(week|day|hour|minute|second|millisecond|microsecond)s?")
_SECONDS: Final = {
    "week": 604_800.0,
    "day": 86_400.0,
    "hour": 3_600.0,
    "minute": 60.0,
    "second": 1.0,
    "millisecond": 1e-3,
    "microsecond": 1e-6,
}


def interval_seconds(text: str) -> float | None:
    """Return the length of an interval as a property of a table has it; None if it cannot be read."""
    terms = _TERM.findall(text)
    rest = _TERM.sub("", text.lower().removeprefix("interval")).strip()
    return sum(float(count) * _SECONDS[unit] for count, unit in terms) if terms and not rest else None


def vacuum_seconds(state: State) -> float | None:
    """Return the age from which VACUUM deletes a file that waits for its commit, where the table has it shorter.

    None if it is the default of 7 days, or longer.
    """
    seconds = interval_seconds(state.configuration.get("delta.deletedFileRetentionDuration", ""))
    return seconds if seconds is not None and seconds < _USUAL_VACUUM_SECONDS else None


def require_usable(state: State, place: str) -> None:
    """Refuse a table to which arcpipe must not append: the reason is in the text.

    Raises:
        Refused: the table needs something of its writers that arcpipe does not do.
    """
    reason = _obstacle(state)
    if reason:
        raise Refused(f"{place} is a Delta table that arcpipe cannot write to: {reason}")


# Features whose use shows in the table's metadata, where `_obstacle` looks for it. Without use, they ask for nothing.
_SEEN_IN_METADATA: Final = frozenset(
    {
        *("appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns", "columnMapping"),
        *("identityColumns", "timestampNtz", "vacuumProtocolCheck"),
    }
)
_COLUMN_RULES: Final = {
    "delta.invariants": "an invariant",
    "delta.generationExpression": "a value that its writers compute",
    "delta.identity.start": "numbers that its writers count",
}


def _obstacle(state: State) -> str:
    """Say why arcpipe cannot write to the table; empty if it can."""
    protocol, metadata, settings = state.protocol, state.metadata, state.configuration
    features = {*(protocol.get("writerFeatures") or ()), *(protocol.get("readerFeatures") or ())}
    reader, writer = protocol.get("minReaderVersion", 0), protocol.get("minWriterVersion", 0)
    if unknown := sorted(features - _SEEN_IN_METADATA):
        return f"its protocol has the features {', '.join(unknown)}. Make the table anew without them"
    if reader > 3 or writer > 7:
        return f"its protocol has the versions {reader} and {writer}, and arcpipe knows those up to 3 and 7"
    if (mapping := settings.get("delta.columnMapping.mode", "none")) != "none":
        return f"it has a column mapping ({mapping}). Make the table anew without it"
    if partitions := metadata.get("partitionColumns"):
        return f"it is partitioned by {', '.join(partitions)}. Make the table anew without partitions"
    if (provider := (metadata.get("format") or {}).get("provider", "parquet")) != "parquet":
        return f"its files are of the format {provider}"
    if "delta.setTransactionRetentionDuration" in settings:
        # Whoever writes a checkpoint drops old markers then, and files would be added a second time.
        return (
            "it forgets the markers of its writers. "
            "Remove it: ALTER TABLE … UNSET TBLPROPERTIES ('delta.setTransactionRetentionDuration')"
        )
    if constraints := sorted(key for key in settings if key.startswith("delta.constraints.")):
        return f"it has constraints ({', '.join(constraints)}). Drop them: ALTER TABLE … DROP CONSTRAINT …"
    try:
        fields = state.fields
    except (ValueError, KeyError) as error:
        return f"its schema cannot be read: {error}"
    for one in fields:
        for key, rule in _COLUMN_RULES.items():
            if key in (one.get("metadata") or {}):
                return f"its column {one['name']!r} has {rule}. Make the table anew without it"
    return ""
