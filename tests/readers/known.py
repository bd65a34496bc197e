"""What readers cannot read, by their own faults. Each is a test that is expected to fail, and red once it passes."""

from __future__ import annotations

from typing import Final, NamedTuple


class Failure(NamedTuple):
    """A reason, and where it holds: for tables or folders, of each reader whose name begins so."""

    reason: str
    tables: tuple[str, ...]
    readers: tuple[str, ...]


ICEBERG: Final = "spark 3.5.9/iceberg-1.10.1"
_OLD_SPARKS: Final = ("spark 3.5.1", "spark 4.0.0")  # mended by 3.5.9 and 4.1.4

FAILURES: Final = (
    Failure("2026.9.0 makes floats of decimals", ("unsigned", "unsigned_above_i64"), ("fastparquet",)),
    Failure("BYTE_STREAM_SPLIT is not understood", ("small floats",), ("fastparquet", "spark")),
    Failure("DELTA_LENGTH_BYTE_ARRAY is not understood", ("small texts",), ("fastparquet", ICEBERG)),
    Failure("DELTA_LENGTH_BYTE_ARRAY: other texts from row 4,096 on", ("small texts",), _OLD_SPARKS),
)
"""Nothing here is arcpipe's to mend: `small …` are tables with `parquet.encodings = "small"`."""


def expected_failure(reader: str, table: str) -> str:
    """Tell why this reader does not read that table or folder; empty if it does."""
    return "; ".join(
        failure.reason for failure in FAILURES if table in failure.tables and reader.startswith(failure.readers)
    )
