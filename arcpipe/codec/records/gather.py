"""Records of a chunk -> columnar maps: rows are grouped by shape, and their values packed by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from operator import itemgetter
from struct import Struct
from typing import Any, Final

import numpy as np

from arcpipe.codec.columns import (
    TIME,
    ColumnBatch,
    Maps,
    array_header,
    check_measurement,
    pack_int64,
    pack_values,
)
from arcpipe.codec.effort import Effort
from arcpipe.codec.integers import fitting
from arcpipe.codec.messagepack.times import BadTime, TimeRule, settle
from arcpipe.codec.records.plan import Plan, make_plan
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload

_PLANS_KEPT: Final = 256  # shapes that are remembered within a body
_FEW_ROWS: Final = 24  # numbers of a column up to which they are packed one by one: numpy costs more for these
_TIMES_TOGETHER: Final = 64  # of a column with bad ones: one alone costs 10 µs
_COLUMNS_BETWEEN_CHECKS: Final = 63  # a mask
_COLUMNS_PER_WEIGHT: Final = 64  # columns of a shape that cost as much as a shape
_INT: Final = frozenset((int,))
_PACK_INT: Final = Struct(">Bq").pack

BadRows = dict[int, str]
"""The reasons by the index of each bad row."""


class Gatherer:
    """Gather the records of one body."""

    def __init__(self, roles: Roles, rule: TimeRule, effort: Effort) -> None:
        self.maps = Maps()
        self._roles = roles
        self._rule = rule
        self._effort = effort
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> BadRows:
        """Take records as maps of their fields; return the reasons of bad ones.

        Raises:
            PayloadTooLarge: the body has too many shapes for its size.
        """
        bad: BadRows = {}
        shapes = set(map(tuple, rows))
        if len(shapes) == 1 and self._roles.measurement_field is None:
            self._add_group(shapes.pop(), self._roles.measurement, rows, range(len(rows)), bad)
            return bad
        groups: dict[tuple[Any, ...], list[int]] = {}
        by_names: dict[tuple[Any, ...], list[int]] = {}
        for index, row in enumerate(rows):
            measurement = self._measurement_of(row)
            if measurement is None:
                bad[index] = f"field '{self._roles.measurement_field}' names no measurement"
                continue
            key = (measurement, *row)
            group = groups.get(key)
            if group is None:
                # The order of names does not matter: some senders write maps in random order.
                group = groups[key] = by_names.setdefault((measurement, frozenset(row)), [])
            group.append(index)
        for (measurement, _), indices in by_names.items():
            first = rows[indices[0]]
            self._add_group(tuple(first), measurement, [rows[index] for index in indices], indices, bad)
        return bad

    def _measurement_of(self, row: Mapping[str, Any]) -> str | None:
        field = self._roles.measurement_field
        if field is None:
            return self._roles.measurement
        named = row.get(field)
        if named is None:
            return self._roles.measurement
        return named if isinstance(named, str) else None

    def _add_group(
        self,
        names: tuple[str, ...],
        measurement: str,
        rows: Sequence[Mapping[str, Any]],
        indices: Sequence[int],
        bad: BadRows,
    ) -> None:
        """Take rows with the same names. `indices` are those of `bad`."""
        try:
            plan = self._plan(names, measurement)
        except BadPayload as error:
            bad.update(dict.fromkeys(indices, str(error)))
            return
        times = None if plan.time is None else list(map(itemgetter(plan.time), rows))
        columns = [list(map(itemgetter(name), rows)) for name in plan.fields]
        for row, reason in self.add_columns(plan, times, columns).items():
            bad[indices[row]] = reason

    def _plan(self, names: tuple[str, ...], measurement: str) -> Plan:
        key = (measurement, *names)
        plan = self._plans.get(key)
        if plan is None:
            check_measurement(measurement)
            plan = make_plan(names, measurement, self._roles)
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def add_columns(self, plan: Plan, times: list[Any] | None, columns: list[list[Any]]) -> BadRows:
        """Take rows of one shape by column; return the reasons of bad ones.

        Raises:
            PayloadTooLarge: the body has too many shapes for its size.
        """
        self._effort.add_shape(1 + len(columns) // _COLUMNS_PER_WEIGHT)
        bad: BadRows = {}
        batch = self._batch(plan, times, columns, bad)
        if bad:
            good = [index not in bad for index in range(len(columns[0]))]
            if not any(good):
                return bad
            columns = [list(compress(values, good)) for values in columns]
            batch = self._batch(plan, None if times is None else list(compress(times, good)), columns, {})
        self.maps.add(batch.encode(), batch.records)
        return bad

    def _batch(self, plan: Plan, times: list[Any] | None, columns: list[list[Any]], bad: BadRows) -> ColumnBatch:
        """Pack columns, and note bad rows: with any, the batch has no meaning."""
        packed: dict[str, bytes] = {}
        if times is not None and times.count(None) < len(times):
            packed[TIME] = self._pack_times(times, bad)
        for number, (column, values) in enumerate(zip(plan.columns, columns, strict=True)):
            if number & _COLUMNS_BETWEEN_CHECKS == _COLUMNS_BETWEEN_CHECKS:
                self._effort.check()
            packed[column] = _pack_column(values, bad)
        return ColumnBatch(plan.measurement, packed, len(columns[0]), plan.tags, plan.types)

    def _pack_times(self, times: list[Any], bad: BadRows) -> bytes:
        header = array_header(len(times))
        values = _pack_column(times, bad)[len(header) :]
        try:
            return header + self._settled(values, len(times))
        except BadTime:
            pass
        parts = [header]
        for start in range(0, len(times), _TIMES_TOGETHER):
            parts += self._pack_some_times(start, times[start : start + _TIMES_TOGETHER], bad)
        return b"".join(parts)

    def _pack_some_times(self, start: int, times: list[Any], bad: BadRows) -> list[bytes]:
        """Pack times, together or, if some are bad, one by one."""
        try:
            return [self._settled(b"".join([pack_values([time])[1:] for time in times]), len(times))]
        except (BadTime, OverflowError, RecursionError, ValueError):
            pass
        parts = []
        for row, time in enumerate(times, start):
            try:
                parts.append(self._settled(pack_values([time])[1:], 1))
            except BadTime as error:
                bad[row] = f"the time is not valid: {error}"
            except (OverflowError, RecursionError, ValueError):
                bad[row] = "the time is not valid"
        return parts

    def _settled(self, values: bytes, count: int) -> bytes:
        """Return the times as the WAL has them. Raises BadTime."""
        return settle(values, 0, len(values), count, self._rule, self._effort.check, each=True) or values


def _pack_column(values: list[Any], bad: BadRows) -> bytes:
    """Pack values as a MessagePack array. Integers have 9 bytes each, so that readers step through them."""
    if set(map(type, values)) == _INT:
        try:
            if len(values) > _FEW_ROWS:
                return pack_int64(np.array(values, np.int64))
            return b"".join((array_header(len(values)), *[_PACK_INT(0xD3, value) for value in values]))
        except Exception:  # beyond 63 bits: the exceptions of struct and numpy differ
            pass
    try:
        return pack_values(values)
    except (OverflowError, RecursionError, ValueError):
        pass
    packed = [array_header(len(values))]
    for row, value in enumerate(values):
        try:
            packed.append(pack_values([fitting(value)])[1:])
        except (OverflowError, RecursionError, ValueError):
            bad[row] = "a value is nested too deep"
    return b"".join(packed)
