"""The plan of a load: every option that decides what a chunk holds, and so is a part of its key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import unquote

from arcpipe.client.options import Precision
from arcpipe.errors import ArcpipeError
from arcpipe.units import MB

FileFormat = Literal["lines", "csv", "annotated-csv", "ndjson", "parquet", "arrow"]
Kind = Literal["int", "float", "bool", "text"]
"""The type of a column of a file whose values are text."""

DEFAULT_DATABASE: Final = "default"
TIME: Final = "time"

# It changes with each change of this package that makes other chunks of the same file: chunks of two versions must
# never share a key.
_VERSION: Final = 3
# database/measurement/2026/11/29/14/x.parquet, as Arc and arcpipe have it, or year=2026/month=11/day=29/hour=14.
_LAYOUT: Final = re.compile(
    r"(?:^|/)([^/]+)/([^/]+)/(?:year=)?\d{4}/(?:month=)?\d{1,2}/(?:day=)?\d{1,2}/(?:(?:hour=)?\d{1,2}/)?[^/]+\Z"
)


class BadPlan(ArcpipeError):
    """Options do not fit each other, or the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one file is read."""

    format: FileFormat = "lines"
    database: str = ""
    """Empty: what the file or its path says, else `default`."""
    measurement: str = ""
    measurement_column: str = ""
    tags: tuple[str, ...] = ()
    time_column: str = ""
    has_time: bool = True
    precision: Precision = "auto"
    types: Mapping[str, Kind] = field(default_factory=dict)
    batch_records: int = 5000
    batch_bytes: int = 1 * MB

    def key(self) -> str:
        """Return a hash of all that decides what a chunk holds."""
        values = {
            "version": _VERSION,
            "format": self.format,
            # Which one is the scope of a key already. Of lines it decides whether an export's contexts cut chunks.
            "database": bool(self.database) and self.format == "lines",
            "measurement": [self.measurement, self.measurement_column],
            "tags": self.tags,
            "time": [self.time_column, self.has_time, self.precision],
            "types": sorted(self.types.items()),
            "batch": [self.batch_records, self.batch_bytes],
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def of_path(self, path: str) -> Plan:
        """Return the plan with what only the file's path says: database and measurement."""
        found = _LAYOUT.search(path)
        if found is None or self.format not in ("parquet", "arrow"):
            return self
        named = bool(self.measurement or self.measurement_column)
        return replace(
            self,
            database=self.database or unquote(found[1]),
            measurement=self.measurement if named else unquote(found[2]),
        )

    def needs_measurement(self) -> None:
        """Raise BadPlan if nothing says which measurement the rows are of."""
        if not self.measurement and not self.measurement_column:
            raise BadPlan(
                "nothing says which measurement the rows are of: give --measurement NAME or --measurement-column COLUMN"
            )

    def time_of(self, names: list[str]) -> str | None:
        """Return the column that is the time; None if there is none on purpose.

        Raises:
            BadPlan: there is none, or another column has its name.
        """
        if not self.has_time:
            return None
        wanted = (self.time_column,) if self.time_column else (TIME, "timestamp", "_time")
        found = next((name for name in wanted if name in names), None)
        if found is None:
            raise BadPlan(
                f"there is no column {' or '.join(wanted)}: give --time-column COLUMN, or --no-time for the time of "
                f"arrival. There are: {', '.join(names[:20])}"
            )
        if found != TIME and TIME in names:
            raise BadPlan(f"the time is in {found!r}, and there is another column 'time': rename one of them")
        return found
