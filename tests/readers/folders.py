"""Folders of several files: columns that come and go, change what is sent in them, or have names of a kind.

Each part is line protocol of one measurement and becomes a file of its own. The rows are those of `docs/columns.md`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tests.readers.model import Row

_FIRST: Final = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
_FIRST_NS: Final = 1_790_000_000_000_000_000


class Folder(NamedTuple):
    parts: tuple[str, ...]
    rows: list[Row]


def _folder(measurement: str, *written: tuple[str, dict[str, Any]]) -> Folder:
    """Make a folder of one row a file: the line without its time, and the row that a reader finds."""
    parts = tuple(f"{measurement}{line} {_FIRST_NS + number * 10**9}" for number, (line, _) in enumerate(written))
    names = {name for _, row in written for name in row}
    rows = [
        {"time": _FIRST + timedelta(seconds=number), **dict.fromkeys(names), **row}
        for number, (_, row) in enumerate(written)
    ]
    return Folder(parts, rows)


FOLDERS: Final = {
    "same_columns": _folder(
        "m",
        (',host=a v=1i,note="x"', {"host": "a", "v": 1, "note": "x"}),
        (',host=b v=2i,note="y"', {"host": "b", "v": 2, "note": "y"}),
        (',host=c v=3i,note="z"', {"host": "c", "v": 3, "note": "z"}),
    ),
    "come_and_go": _folder(
        "weather",
        (" wind=3", {"wind": 3.0}),
        (" wind=4.5,rain=t", {"wind": 4.5, "rain": True}),
        (' sky="grey",drops=5i', {"sky": "grey", "drops": 5}),
    ),
    "integer_then_float": _folder("m", (" v=1i", {"v": 1}), (" v=2.5", {"v_f64": 2.5}), (" v=3i", {"v": 3})),
    "float_then_integer": _folder(
        "m",
        (" v=0.5", {"v": 0.5}),
        (" v=3i", {"v": 3.0}),
        (" v=9007199254740993i", {"v_i64": 9007199254740993}),
    ),
    "float_then_text": _folder("m", (" v=0.5", {"v": 0.5}), (' v="n/a"', {"v_str": "n/a"}), (" v=1.5", {"v": 1.5})),
    "text_then_float": _folder("m", (' v="a"', {"v": "a"}), (" v=1.5", {"v_f64": 1.5}), (' v="b"', {"v": "b"})),
    "boolean_then_integer": _folder("m", (" v=t", {"v": True}), (" v=1i", {"v_i64": 1}), (" v=f", {"v": False})),
    "odd_names": _folder(
        r"m\ 1\,a\=b%c",
        (
            r',näme\ 1=a b\ c=1i,d\,e=2i,f.g=3i,h"i=4i,日本=5i',
            {"näme 1": "a", "b c": 1, "d,e": 2, "f.g": 3, 'h"i': 4, "日本": 5},
        ),
    ),
    "unsigned_above_i64": _folder(
        "m",
        (" v=1u", {"v": 1}),
        (" v=9223372036854775808u", {"v_u64": 2**63}),
        (" v=18446744073709551615u", {"v_u64": 2**64 - 1}),
    ),
    "name_of_a_sibling": _folder(
        "m", (" v=1i", {"v": 1}), (' v=2.5,v_f64="x"', {"v_f64_2": 2.5, "v_f64": "x"}), (" v=3.5", {"v_f64_2": 3.5})
    ),
    "case": _folder(
        "m",
        (" v=3", {"v": 3.0}),
        (" V=4", {"V_2": 4.0}),
        (",Host=a,host=b v=5i,V=6i", {"Host": "a", "host_2": "b", "v": 5.0, "V_2": 6.0}),
    ),
    "taken_names": _folder(
        "m",
        (" time=1i,__x=2i", {"time_field": 1, "_x_field": 2}),
        (",_metadata=a _file=3i,_change_type=4i", {"_metadata_tag": "a", "_file_field": 3, "_change_type_field": 4}),
        (' time=5i,_rescued_data="b"', {"time_field": 5, "_rescued_data_field": "b"}),
    ),
    "hidden": _folder("_internal", (" v=1i", {"v": 1}), (" v=2i", {"v": 2})),
    "_hidden.database": _folder(".internal", (" v=1i", {"v": 1}), (" v=2i", {"v": 2})),
}
"""By database."""

PARTS: Final = {name: folder.parts for name, folder in FOLDERS.items()}
"""The files of each folder."""


def directory_of(database: str) -> str:
    """Return the folder of a database: an underscore in front is percent-encoded, because many readers skip it."""
    return f"%5F{database[1:]}" if database.startswith("_") else database
