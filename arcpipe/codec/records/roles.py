"""What the fields of records are: the time, the measurement, tags, and types that are known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from arcpipe.codec.columns import TIME, check_column_name, check_measurement
from arcpipe.errors import BadPayload

TYPES: Final = ("i64", "u64", "f64", "bool", "str")
"""The words for types that a sender may say in advance."""

_MAX_NAMES: Final = 1024  # tags, or types, that a request may name


class Roles(NamedTuple):
    """The roles of a request's fields. The names are valid."""

    measurement: str  # of records that name none
    time: str = TIME
    measurement_field: str | None = None  # the field that names the measurement
    tags: frozenset[str] = frozenset()
    types: Mapping[str, str] = {}


def read_roles(measurement: str, time: str, measurement_field: str, tags: str, types: str) -> Roles:
    """Read roles as a request gives them: empty text is none, and commas separate names.

    Args:
        types: words of `TYPES`, each after the name of its field and a colon.

    Raises:
        BadPayload: a name is not valid, or a field has two roles; the text names it.
    """
    check_measurement(measurement)
    of_tags = frozenset(_names("tag_fields", tags))
    time = time or TIME
    check_column_name(time, "time field")
    if measurement_field:
        check_column_name(measurement_field, "measurement field")
    for name in of_tags:
        check_column_name(name, "tag")
    for name, role in ((time, "the time"), (measurement_field, "the measurement")):
        if name in of_tags:
            raise BadPayload(f"field '{name}' cannot be both a tag and {role}")
    if TIME in of_tags:
        raise BadPayload("a tag cannot be called 'time', the name of the timestamp column")
    if time == measurement_field:
        raise BadPayload(f"field '{time}' cannot be both the time and the measurement")
    return Roles(measurement, time, measurement_field or None, of_tags, _types(types))


def _types(text: str) -> dict[str, str]:
    types = {}
    for pair in _names("types", text):
        name, _, word = pair.rpartition(":")
        if word not in TYPES or not name:
            raise BadPayload(f"types: '{pair[:80]}' is not a field, a colon and one of {', '.join(TYPES)}")
        check_column_name(name, "field")
        types[name] = word
    return types


def _names(what: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    if len(names) > _MAX_NAMES:
        raise BadPayload(f"{what} has more than {_MAX_NAMES} names")
    if "" in names:
        raise BadPayload(f"{what} has an empty name")
    return names
