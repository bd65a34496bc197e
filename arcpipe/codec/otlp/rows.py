"""Columns of one table, collected by name."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.collected import (
    Collected,
    Column,
    booleans,
    doubles,
    integers,
    numbers,
    shared,
    texts,
    times,
)
from arcpipe.codec.columns import TIME
from arcpipe.codec.otlp.request import Request
from arcpipe.codec.packing import taken
from arcpipe.codec.protobuf.buffer import Ints, Words
from arcpipe.codec.protobuf.fields import Mask

MOST_NS: Final = np.uint64((1 << 63) - 1)
"""The last time in nanoseconds that has 63 bits: in the year 2262."""

_SUFFIX: Final = "_attribute"


class Rows:
    """The columns of some rows of one table. Numbers of 64 bits without a sign become `u64` where they are above 63."""

    def __init__(self, count: int, collected: Collected) -> None:
        self.count = count
        self._collected = collected
        self._columns: dict[str, Column] = {}

    def time(self, name: str, times_ns: Words) -> None:
        """Add times as numbers; 0 is a missing one, as the specification says. That of the row becomes a time."""
        values, missing = times_ns.view(np.int64), times_ns == 0
        self._columns[name] = times(values, "ns", missing) if name == TIME else integers(values, missing)

    def texts(self, name: str, values: pa.Array) -> None:
        """Add texts; null stays null."""
        self._columns[name] = texts(values)

    def taken(self, name: str, values: pa.Array, rows: Ints) -> None:
        """Add the values at these indices, one for each row."""
        self._columns[name] = shared(values, rows, self._collected.growth)

    def integers(self, name: str, values: Ints | Words, missing: Mask | None = None) -> None:
        """Add integers of 64 bits."""
        self._columns[name] = integers(values, missing)

    def doubles(self, name: str, values: npt.NDArray[np.float64], missing: Mask | None = None) -> None:
        """Add doubles, bit by bit."""
        self._columns[name] = doubles(values, missing)

    def numbers(self, name: str, bits: Words, is_integer: Mask, missing: Mask) -> None:
        """Add doubles and integers of one column, which is of doubles; what does not fit goes to its sibling."""
        self._columns[name] = numbers(bits, is_integer, missing)

    def booleans(self, name: str, values: Mask) -> None:
        """Add booleans."""
        self._columns[name] = booleans(values)

    def origin(self, request: Request, scope: Ints, promoted: tuple[pa.Array, ...], promote: tuple[str, ...]) -> None:
        """Add the columns of resource and scope, and those of promoted attributes.

        Args:
            scope: of each row.
            promoted: the values of the rows themselves; the resource's come where they have none.
        """
        resource = request.scopes.resource[scope]
        resources, scopes = request.resources, request.scopes
        for name, values, index in (
            ("ServiceName", resources.service, resource),
            ("ResourceAttributes", resources.attributes, resource),
            ("ResourceSchemaUrl", resources.schema_url, resource),
            ("ScopeName", scopes.name, scope),
            ("ScopeVersion", scopes.version, scope),
            ("ScopeAttributes", scopes.attributes, scope),
            ("ScopeSchemaUrl", scopes.schema_url, scope),
        ):
            self.taken(name, values, index)
        for name, own, common in zip(promote, promoted, resources.promoted, strict=True):
            is_own = name in self._columns or name == TIME
            values = pc.coalesce(own, taken(common, resource, self._collected.growth))
            self._columns[f"{name}{_SUFFIX}" if is_own else name] = texts(values)

    def add_to(self, table: str, tags: tuple[str, ...]) -> None:
        """Add the rows to those of the request."""
        self._collected.add(table, tags, self._columns, self.count)
