"""The setting `compaction.dedup`: whether points that were sent twice count once, by database or measurement."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, get_args

import msgspec

from arcpipe.config.tables_of_names import parse_table

DedupWord = Literal["series_time", "none"]
DedupWords = dict[str, DedupWord]

MAX_WORDS: Final = 1_000
"""Most entries."""

_FORM: Final = 'a table such as { "db" = "series_time", "db.raw" = "none" }: a database, or database and measurement'


def parse_dedup(value: Any, is_text: bool) -> DedupWords:
    """Parse `compaction.dedup` from TOML, or from JSON in a variable.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: it is invalid; the text says what is allowed.
    """
    value = parse_table(value, is_text, _FORM, {"db": "series_time"}, MAX_WORDS, "entries")
    for name, word in value.items():
        if word not in get_args(DedupWord):
            raise ValueError(f"{name}: allowed: {', '.join(json.dumps(one) for one in get_args(DedupWord))}")
    return msgspec.convert(value, DedupWords)
