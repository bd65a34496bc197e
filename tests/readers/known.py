"""What readers cannot read today. Each is a test that is expected to fail, and that fails when it passes."""

from __future__ import annotations

from typing import Final, NamedTuple


class Failure(NamedTuple):
    """A reason, and where it holds: of each reader whose name begins so, for tables or folders, from some rows on."""

    reason: str
    tables: tuple[str, ...]
    readers: tuple[str, ...] = ("",)
    least_rows: int = 0


_HIDES: Final = ("pyarrow", "pandas", "spark")

_OLD_SPARKS: Final = ("spark 3.5.1", "spark 4.0.0")  # mended by 3.5.9 and 4.1.4

FAILURES: Final = (
    Failure("a u64 above i64 is in a column UINT_64 with the others, not in the sibling total_u64", ("unsigned",)),
    Failure("a MessagePack timestamp in another column than time is JSON in _rescued_data", ("stamps",)),
    Failure("v is INT64 in one file and DOUBLE in the next, not v and v_f64", ("integer_then_float",)),
    Failure(
        "what does not fit the type of v is JSON in _rescued_data, not in a sibling",
        ("float_then_integer", "float_then_text", "text_then_float", "boolean_then_integer"),
    ),
    Failure("the folder _internal begins with _: no file is seen", ("hidden",), _HIDES),
    Failure("v and V, host and Host are columns of one folder", ("case",)),
    Failure("the fields year, day and hour are one column with the folders year=, day= and hour=", ("hive",)),
    Failure("DELTA_BINARY_PACKED of far integers: segmentation fault", ("integers",), ("fastparquet",)),
    Failure("BYTE_STREAM_SPLIT is not understood", ("floats", "gaps"), ("fastparquet", "spark"), 32_768),
    Failure("DELTA_LENGTH_BYTE_ARRAY is not understood", ("texts", "gaps"), ("fastparquet",), 4_096),
    Failure("DELTA_LENGTH_BYTE_ARRAY: other texts from row 4,096 on", ("texts", "gaps"), _OLD_SPARKS, 4_096),
)


def expected_failure(reader: str, table: str, rows: int = 0) -> str:
    """Tell why this reader does not read that table or folder today; empty if it does."""
    return "; ".join(
        failure.reason
        for failure in FAILURES
        if table in failure.tables and rows >= failure.least_rows and reader.startswith(failure.readers)
    )
