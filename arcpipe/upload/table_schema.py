"""A table's columns: which one a sender's name has, of which type, and where its values of other types go.

The first type of a column is its type for good: most readers refuse a folder where it changes. A scalar that does not
fit goes to a sibling column `{name}_{type}`, such as `usage_f64` or `note_str`, which is a column like any other. All
of this is recorded by the sender's name, so that the same name gives the same columns for ever.

What is decided follows from the record, the values and the rules, in the order of the calls. So a batch that is done
again decides the same. This module must not know files, batches or Parquet.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cached_property, lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias, cast

import msgspec

from arcpipe.codec.arrow.by_kernel import Plain
from arcpipe.codec.arrow.natural import natural_type
from arcpipe.codec.arrow.values import Natural, Values
from arcpipe.lake.column_names import HIVE_NAMES, folded, is_reserved, numbered, unreserved
from arcpipe.lake.file_schema import TIME_NS

MAX_COLUMNS: Final = 4_096
"""Most columns of a table; the values of further ones are rescued."""

TypeWord: TypeAlias = Natural
"""A type. "u64" is that of columns of early versions; today it is only the word of a sibling, with decimal(20,0)."""

TableName: TypeAlias = tuple[str, str]
"""The database and the measurement."""


class ColumnSchema(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The columns of one sender's name."""

    type: TypeWord
    tag: bool = False  # some sender called it a tag
    column: str = ""  # the name in the lake; empty where it is the sender's own
    siblings: dict[TypeWord, str] = {}  # by type: the column of values that do not fit; msgspec copies it


class TableSchema(msgspec.Struct, array_like=True):
    """The columns of a measurement except time, by the sender's names, in the order in which they came."""

    database: str
    measurement: str
    columns: dict[str, ColumnSchema] = {}  # msgspec copies it

    @property
    def name(self) -> TableName:
        return self.database, self.measurement

    @property
    def width(self) -> int:
        """The number of columns, siblings among them."""
        return len(self.columns) + sum(len(column.siblings) for column in self.columns.values())

    def copy(self) -> TableSchema:
        return TableSchema(self.database, self.measurement, dict(self.columns))


class ColumnRules(NamedTuple):
    """The settings that decide over new columns."""

    untyped_integers: Literal["i64", "f64"] = "i64"  # the type of integers of which the sender said none
    types: tuple[tuple[str, TypeWord], ...] = ()  # by pattern of `database.measurement.column`; the first match counts
    hive: bool = False  # the layout: its folders' names are taken
    keep_nanoseconds: bool = False  # the name `time_ns` is taken

    def type_of(self, table: TableSchema, name: str) -> TypeWord | None:
        """Return the type that the settings give a column in advance."""
        if not self.types:
            return None
        full = f"{table.database}.{table.measurement}.{name}"
        return next((word for pattern, word in self.types if _compiled(pattern).fullmatch(full)), None)


@lru_cache(maxsize=4_096)  # patterns: as many as settings have, in any sane case
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


class Columns:
    """Find the columns of one conversion's values, and record new ones in the schema. `table` is changed in place."""

    def __init__(self, table: TableSchema, rules: ColumnRules, coming: Iterable[str]) -> None:
        """Begin.

        Args:
            coming: all names of this conversion. No other column gets one of them.
        """
        self._table = table
        self._rules = rules
        self._coming = coming
        # Names that a sender's column may have had before they were taken.
        self._taken_later = (HIVE_NAMES if rules.hive else frozenset()) | (
            {TIME_NS} if rules.keep_nanoseconds else frozenset()
        )
        self._numbers: dict[str, int] = {}

    @cached_property
    def _used(self) -> set[str]:
        """The folded names of all columns."""
        used = set()
        for name, column in self._table.columns.items():
            used.add(folded(column.column or name))
            used.update(map(folded, column.siblings.values()))
        return used

    @cached_property
    def _avoided(self) -> frozenset[str]:
        return frozenset(map(folded, self._coming))

    @cached_property
    def _width(self) -> int:
        return self._table.width

    @property
    def is_full(self) -> bool:
        return self._width >= MAX_COLUMNS

    def type_of(self, name: str) -> TypeWord | None:
        """Return the type of a sender's name; None if it has no column yet."""
        known = self._table.columns.get(name)
        return None if known is None else known.type

    def settle(self, name: str, values: Values | Plain, hints: Collection[str], tag: bool) -> ColumnSchema | None:
        """Return the column of a sender's name, and record what is new about it.

        Args:
            values: they decide over the type of a new column, where neither settings nor hints do.
            hints: the types that senders gave.

        Returns:
            None if there is no column yet, and none of the values settles a type, or the table is full.
        """
        known = self._table.columns.get(name)
        if known is None:
            return self._new(name, values, hints, tag)
        column = known
        if tag and not known.tag:
            column = msgspec.structs.replace(column, tag=True)
        if self._taken_later and folded(known.column or name) in self._taken_later:
            column = msgspec.structs.replace(column, column=self._lake_name(name, column.tag))
        if column is not known:
            self._table.columns[name] = column
        return column

    def _new(self, name: str, values: Values | Plain, hints: Collection[str], tag: bool) -> ColumnSchema | None:
        type_ = self._rules.type_of(self._table, name) or _agreed(hints)
        if type_ is None:
            type_ = values.natural if isinstance(values, Plain) else natural_type(values)
            if type_ is None:
                return None
            if type_ == "i64" or type_ == "u64":
                type_ = self._rules.untyped_integers
        return self.declare(name, "i64" if type_ == "u64" else type_, tag)  # above i64, they go to the sibling

    def declare(self, name: str, type_: TypeWord, tag: bool = False) -> ColumnSchema | None:
        """Record a new column of this type; None if the table is full."""
        if self.is_full:
            return None
        lake_name = self._lake_name(name, tag)
        column = ColumnSchema(type_, tag, "" if lake_name == name else lake_name)
        self._table.columns[name] = column
        self._width += 1
        return column

    def sibling(self, name: str, type_: TypeWord) -> str | None:
        """Return the column of a settled name's values of another type; None if the table is full."""
        column = self._table.columns[name]
        found = column.siblings.get(type_)
        if found is not None or self.is_full:
            return found
        sibling = self._claim(f"{column.column or name}_{type_}")
        self._table.columns[name] = msgspec.structs.replace(column, siblings={**column.siblings, type_: sibling})
        self._width += 1
        return sibling

    def _lake_name(self, name: str, tag: bool) -> str:
        """Claim a column for a sender's name: this one, unless it is taken."""
        if is_reserved(name, self._rules.hive):
            return self._claim(unreserved(name, "tag" if tag else "field"))
        key = folded(name)
        if key not in self._used:
            self._used.add(key)
            return name
        return self._claim(name)

    def _claim(self, wanted: str) -> str:
        """Claim a name that no sender gave: `wanted`, or else with a number."""
        if wanted.startswith("__"):  # of a column of an early version
            wanted = "_" + wanted.lstrip("_")
        claimed = wanted
        key = folded(wanted)
        if not self._is_free(wanted):
            claimed, self._numbers[key] = numbered(wanted, self._is_free, self._numbers.get(key, 2))
        self._used.add(folded(claimed))
        return claimed

    def _is_free(self, name: str) -> bool:
        key = folded(name)
        return key not in self._used and key not in self._avoided and not is_reserved(name, self._rules.hive)


def _agreed(hints: Collection[str]) -> TypeWord | None:
    """Combine the types that senders gave a column; None if there are none, or they contradict one another."""
    if len(hints) == 1:
        return cast(TypeWord, next(iter(hints)))
    if hints and set(hints) <= {"i64", "u64", "f64"}:
        return "f64" if "f64" in hints else "i64"
    return None
