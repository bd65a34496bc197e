"""The way from the fields of a record to columns."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from arcpipe.codec.columns import MAX_COLUMNS, check_column_name, field_column_names
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload


class Plan(NamedTuple):
    """The way from the fields of a shape to its columns."""

    measurement: str
    time: str | None  # the field of the time; None without one
    fields: list[str]  # the fields of the columns, tags first
    columns: list[str]  # their columns
    tags: list[str]
    types: dict[str, str]  # by column, those that the sender said


def make_plan(names: Collection[str], measurement: str, roles: Roles) -> Plan:
    """Plan the columns of records with these names, in this order.

    Raises:
        BadPayload: a name is not valid, or there are too few or too many.
    """
    for name in names:
        check_column_name(name, "field")
    left = [name for name in names if name not in (roles.time, roles.measurement_field)]
    if not left:
        raise BadPayload("no field besides time and measurement" if names else "no fields")
    if len(left) >= MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS - 1} fields")
    tags = [name for name in left if name in roles.tags]
    fields = [name for name in left if name not in roles.tags]
    columns = [*tags, *field_column_names(tags, fields)]
    fields = [*tags, *fields]
    types = {column: roles.types[name] for name, column in zip(fields, columns, strict=True) if name in roles.types}
    return Plan(measurement, roles.time if roles.time in names else None, fields, columns, tags, types)
