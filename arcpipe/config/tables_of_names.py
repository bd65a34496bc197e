"""What the settings that are tables from names to words or numbers have in common."""

from __future__ import annotations

import json
from typing import Any


def parse_table(value: Any, is_text: bool, form: str, example: dict[str, Any], limit: int, what: str) -> dict[str, Any]:
    """Parse a table from TOML, or from JSON in a variable. Its entries are not looked at.

    Args:
        is_text: the value is of a variable.
        form: what is allowed in TOML.
        example: of a table, which is shown as JSON.
        limit: the most entries.
        what: an entry is called, in the plural.

    Raises:
        ValueError: it is no table, or too long; the text says what is allowed.
    """
    if is_text:
        try:
            value = json.loads(value) if value else {}
        except ValueError:
            raise ValueError(f"allowed: JSON such as {json.dumps(example)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"allowed: {form}")
    if len(value) > limit:
        raise ValueError(f"allowed: at most {limit} {what}")
    return value
