"""Tables whose entries are collected, and how these go to the jobs of the batch: with which share of the open files.

This module must not know entries, the WAL or object stores.
"""

from __future__ import annotations

from collections import OrderedDict

from arcpipe.lake.open_files import OpenFiles, Quota
from arcpipe.upload.arrow_entries import ArrowGroup
from arcpipe.upload.conversion_jobs import ConversionJobs, Group, TableOutput
from arcpipe.upload.staging import EntryGroup, GroupKey


class CollectedTable:
    """The collected entries of one (database, measurement), and their output. There may be 100,000 of these."""

    __slots__ = ("arrow", "cost", "flushed", "groups", "max_rows", "names", "output", "quota", "rows")

    def __init__(self, output: TableOutput) -> None:
        self.output = output
        self.arrow = ArrowGroup()
        self.groups: dict[GroupKey, EntryGroup] = {}
        self.names: set[str] = set()
        self.rows = 0
        self.max_rows = 0
        self.cost = 0
        self.flushed = False  # before the batch's end
        self.quota: Quota | None = None  # open files that it was last granted


class TableJobs:
    """Hands collected entries to the jobs of the batch, and divides the open files among the tables."""

    def __init__(self, jobs: ConversionJobs, open_files: OpenFiles) -> None:
        self._jobs = jobs
        self._open_files = open_files
        self._with_files: OrderedDict[CollectedTable, None] = OrderedDict()
        """The tables with a share of the open files, the one used longest ago first."""

    def submit(self, table: CollectedTable, groups: list[Group], cost: int, width: int, *, close: bool = False) -> None:
        """Hand groups of a table to the pool, with their cost in bytes and the number of the table's columns."""
        streams = sum(entry.size_bytes for group in groups if isinstance(group, ArrowGroup) for entry in group.entries)
        # Their columns are copied while they are still there; those of other entries take their place.
        self._jobs.submit(table.output, groups, cost + streams, width, table.quota, close=close)

    def grant_files(self, table: CollectedTable) -> None:
        """Give a table its share of the open files."""
        table.flushed = True
        self._with_files[table] = None
        self._with_files.move_to_end(table)
        if len(self._with_files) > self._open_files.tables:
            oldest, _ = self._with_files.popitem(last=False)
            self.submit(oldest, [], 0, 0, close=True)
        quota = self._open_files.quota(len(self._with_files))
        table.quota = quota
        for other in self._with_files:
            self._set_quota(other, quota)

    def shrink_files(self, table: CollectedTable) -> None:
        """Leave little memory to open files, because an enormous entry of this table is next."""
        count = len(self._with_files)
        quota = self._open_files.quota(count)
        self._set_quota(table, quota._replace(cost=min(quota.cost, self._open_files.file_cost)))
        for other in self._with_files:
            if other is not table:
                self._set_quota(other, quota._replace(cost=self._open_files.cost_beside_large // count))

    def _set_quota(self, table: CollectedTable, quota: Quota) -> None:
        if table.quota != quota:
            table.quota = quota
            self.submit(table, [], 0, 0)
