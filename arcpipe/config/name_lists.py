"""The settings that are lists of names: of labels and of attributes."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

MAX_NAMES: Final = 64
"""Most names of a list: each becomes a column of every row."""
MAX_NAME_BYTES: Final = 240
"""Bytes of a name: it becomes that of a column, perhaps with a suffix."""

_FORM: Final = f'a list of at most {MAX_NAMES} names, each once, such as ["job", "instance"]'

Names = Annotated[tuple[str, ...], Meta(description=_FORM)]


def parse_names(value: Any, is_text: bool) -> Names:
    """Parse a list of names from TOML, or from a variable with commas between them.

    Args:
        is_text: the value is of a variable.

    Raises:
        ValueError: it is invalid; the text says what is allowed.
    """
    if is_text:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(one, str) for one in value):
        raise ValueError(f"allowed: {_FORM}")
    if len(set(value)) < len(value):
        raise ValueError(f"a name is there twice; allowed: {_FORM}")
    for name in value:
        if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES or not name.isprintable():
            raise ValueError(f"allowed in a name: 1 to {MAX_NAME_BYTES} bytes without control characters")
    return tuple(value)
