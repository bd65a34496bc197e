"""Bounds of the conversion of a batch, in one frozen struct that is an argument: tests pass a smaller one.

Bounds in bytes of memory apply to estimated costs: `DECODED_BYTES` for each value, and the costs that
`collected_tables` adds for the objects that hold the values. The content of each file depends on these bounds, so a
batch that is done again has to be done with the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from arcpipe.units import MB

DECODED_BYTES: Final = 8
"""Cost of a value once it is decoded, even if it was encoded in fewer bytes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds on what a batch has in memory. The defaults keep the uploader below its 600 MB in the worst case."""

    # Entries that are collected.
    collected_bytes: int = 52 * MB  # cost of all of them; the tables that cost most are converted at this
    table_bytes: int = 40 * MB  # cost of one table's; an entry that alone costs more is converted in slices
    stream_bytes: int = 24 * MB  # the same of a table with Arrow streams: their columns are copied while they are there
    small_table_bytes: int = MB  # cost up to which tables share a job: one alone is not worth a thread
    release_bytes: int = 48 * MB  # payloads between two releases: views keep those of two such periods alive

    # Entries that wait until it is known whether an earlier one has their idempotency key.
    held_entries: int = 1_024
    held_bytes: int = MB  # of those that are decoded: small values take many times as much then
    held_views_bytes: int = 4 * MB  # of the others

    # Small entries, which are searched together for runs of one shape.
    block_entries: int = 4_096
    block_bytes: int = MB

    # Staged entries of a group are compacted: copied together, which costs less per entry the more they are.
    compact_entries: int = 1_024  # entries that make it worth doing
    compact_entry_bytes: int = 4_096  # payload from which on an entry stays a view: copying costs more than it saves
    compact_early_entries: int = 4  # entries that make it worth doing when memory is short

    # Batch entries with more maps and more bytes than these are decoded one map at a time.
    whole_batch_maps: int = 64
    whole_batch_bytes: int = 4 * MB

    # Slices of an entry above `table_bytes`.
    slice_rows: int = 1 << 18
    slice_bytes: int = 16 * MB
    slice_names_bytes: int = 48 * MB  # column names in the JSON of its rows, should all values be rescued

    # One conversion; rows that exceed it are converted by halves.
    converted_bytes: int = 128 * MB  # cost of the decoded values
    converted_columns: int = 1 << 16  # of entries with different ones: each costs about 1 KB besides its values
    rescued_bytes: int = 32 * MB  # JSON of rescued values
    sibling_bytes: int = 64 * MB  # columns of values that do not fit theirs, before they are sorted
    rescued_at_once_bytes: int = 4 * MB  # rescued values that exist as Python objects, by the JSON they may become
    huge_value_bytes: int = MB  # a text or binary value above which its column has no statistics

    # Jobs that were handed to the pool and are not done.
    jobs: int = 64
    jobs_bytes: int = 96 * MB  # cost of all of them together


BUDGET: Final = Budget()
