"""The setting `retention.days`: for each database, the age in days at which its hours are deleted."""

from __future__ import annotations

from typing import Any, Final

from arcpipe.config.tables_of_names import parse_table

RetentionDays = dict[str, int]

MAX_ENTRIES: Final = 1_000
"""Most entries."""
MAX_DAYS: Final = 36_500
"""A hundred years."""

_FORM: Final = 'a table such as { "default" = 90, "logs" = 7 }: days by database'


def parse_retention(value: Any, is_text: bool) -> RetentionDays:
    """Parse `retention.days` from TOML, or from JSON in a variable.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: it is invalid; the text says what is allowed.
    """
    value = parse_table(value, is_text, _FORM, {"logs": 7}, MAX_ENTRIES, "entries")
    for name, days in value.items():
        if type(days) is not int or not 1 <= days <= MAX_DAYS:
            raise ValueError(f"{name}: allowed: a whole number of days from 1 to {MAX_DAYS}")
    return dict(value)
