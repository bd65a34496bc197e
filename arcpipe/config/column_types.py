"""The setting `schema.types`: types that columns get in advance, by patterns of their names."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, get_args

import msgspec

from arcpipe.config.tables_of_names import parse_table

TypeName = Literal["i64", "f64", "bool", "str", "bytes"]
ColumnTypes = dict[str, TypeName]

MAX_TYPES: Final = 1_000
"""Most patterns: each new column is compared with all of them."""

_FORM: Final = 'a table such as { "*.cpu.usage" = "f64" }: database, measurement and column with dots between them'


def parse_types(value: Any, is_text: bool) -> ColumnTypes:
    """Parse `schema.types` from TOML, or from JSON in a variable.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: it is invalid; the text says what is allowed.
    """
    value = parse_table(value, is_text, _FORM, {"*.cpu.usage": "f64"}, MAX_TYPES, "patterns")
    for pattern, word in value.items():
        if word not in get_args(TypeName):
            raise ValueError(f"{pattern}: allowed: {', '.join(json.dumps(name) for name in get_args(TypeName))}")
        if pattern.count(".") < 2 and "*" not in pattern:
            raise ValueError(f"{pattern}: allowed: {_FORM}")
    return msgspec.convert(value, ColumnTypes)
