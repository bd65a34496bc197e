"""Columns of one table: collected by name, and written as a columnar map."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import TIME, ColumnBatch, Maps, array_header
from arcpipe.codec.effort import Growth
from arcpipe.codec.otlp.request import Request
from arcpipe.codec.packing import FLOAT, SIGNED, UNSIGNED, pack_taken, pack_texts, pack_wide, taken
from arcpipe.codec.protobuf.buffer import Ints, Words
from arcpipe.codec.protobuf.fields import Mask

MOST_NS: Final = np.uint64((1 << 63) - 1)
"""The last time in nanoseconds that has 63 bits: in the year 2262."""

_SUFFIX: Final = "_attribute"


class Rows:
    """The columns of some rows of one table. Numbers of 64 bits without a sign become `u64` where they are above 63."""

    def __init__(self, count: int, growth: Growth) -> None:
        self.count = count
        self._growth = growth
        self._columns: dict[str, bytes] = {}
        self._types: dict[str, str] = {}

    def time(self, name: str, times_ns: Words) -> None:
        """Add times; 0 is a missing one, as the specification says."""
        self._columns[name] = pack_wide(SIGNED, times_ns.view(np.int64), times_ns == 0)

    def texts(self, name: str, values: pa.Array) -> None:
        """Add texts; null stays null."""
        self._columns[name] = pack_texts(values)

    def taken(self, name: str, values: pa.Array, rows: Ints) -> None:
        """Add the values at these indices, one for each row."""
        self._columns[name] = pack_taken(values, rows, self._growth)

    def integers(self, name: str, values: npt.NDArray[Any], missing: Mask | None = None) -> None:
        """Add integers of 64 bits."""
        marker = UNSIGNED if values.dtype == np.uint64 else SIGNED
        self._columns[name] = pack_wide(marker, values, missing)

    def doubles(self, name: str, values: npt.NDArray[np.float64], missing: Mask | None = None) -> None:
        """Add doubles, bit by bit."""
        self._columns[name] = pack_wide(FLOAT, values, missing)

    def numbers(self, name: str, bits: Words, is_integer: Mask, missing: Mask) -> None:
        """Add doubles and integers of one column, which is of doubles; what does not fit goes to its sibling."""
        marker = np.where(is_integer, np.uint8(SIGNED), np.uint8(FLOAT))
        self._columns[name] = pack_wide(marker, bits, missing)
        self._types[name] = "f64"

    def booleans(self, name: str, values: Mask) -> None:
        """Add booleans."""
        self._columns[name] = array_header(len(values)) + (np.uint8(0xC2) + values.astype(np.uint8)).tobytes()

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
            self._columns[name] = pack_taken(values, index, self._growth)
        for name, own, common in zip(promote, promoted, resources.promoted, strict=True):
            is_own = name in self._columns or name == TIME
            values = pc.coalesce(own, taken(common, resource, self._growth))
            self._columns[f"{name}{_SUFFIX}" if is_own else name] = pack_texts(values)

    def add_to(self, maps: Maps, table: str, tags: tuple[str, ...]) -> None:
        """Write the rows."""
        batch = ColumnBatch(table, self._columns, self.count, tags, self._types or None)
        maps.add(batch.encode(), self.count)
