"""Read the inputs of a merge, sort their rows by tags and time, and write them as few files.

    rewrite = Rewrite(merge, dedup, settings.parquet, spool, bounds)
    done = rewrite.run(inputs, sizes, on_file)      # in a thread

What fits in memory is sorted there. Otherwise the inputs are read twice: first for their columns and a sample of rows,
then row by row into files of ranges, each of which is sorted on its own. This module must not know stores.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.compaction.outputs import OnOutput, OutputBounds, Outputs
from arcpipe.compaction.sorting import SortColumns, Splitters, order
from arcpipe.compaction.spill import Ranges, SpillFile
from arcpipe.compaction.tables import Form, joined, taken
from arcpipe.config.settings import Parquet
from arcpipe.errors import ArcpipeError
from arcpipe.lake.checksums import Checksums
from arcpipe.lake.file_schema import file_metadata, union
from arcpipe.lake.input_file import InputFile, Odd
from arcpipe.lake.spool import SpoolMemory
from arcpipe.units import MB

_SAMPLE_ROWS: Final = 65_536  # of all inputs together
_SAMPLE_FILES: Final = 16  # inputs of which a sample is taken
_MOST_RANGES: Final = 400  # open files, each with a buffer of 64 KB
_UNLIKELY: Final = 1.2  # estimated bytes as a part of the memory, from which on nobody tries whether they fit
_SPARE: Final = 1.5  # ranges are made this much smaller than what fits, because a sample is not exact
_STEPS: Final = 4  # in which the rows of a row group are taken
_DEEPEST: Final = 3  # a range that is too large is cut again, this often


class CannotSort(ArcpipeError):
    """The rows cannot be sorted in the memory that there is."""


class _TypesDiffer(Exception):
    """Two inputs have a column of this name with different types."""


class RewriteBounds(NamedTuple):
    """Bounds of memory. Of what is sorted, three copies exist for a moment."""

    sort_bytes: int = 128 * MB
    collected_bytes: int = 32 * MB
    outputs: OutputBounds = OutputBounds()

    @classmethod
    def of(cls, memory_mb: int) -> RewriteBounds:
        """Divide the memory of the process: 360 MB for the program, its buffers and its spools, a third of the rest."""
        sort_bytes = min(max(memory_mb - 360, 30) * MB // 3, 1_000 * MB)
        return cls(sort_bytes, outputs=OutputBounds(row_group_bytes=min(64 * MB, sort_bytes // 2)))


class Rewritten(NamedTuple):
    """The sums of the rows that the outputs have to hold, and the number of superseded rows."""

    checksums: Checksums
    superseded: int


OpenInputs = Callable[[], Iterator[AbstractContextManager[InputFile]]]
"""Opens the inputs, in their order; may be called again."""


class Rewrite:
    """One merge of files of one folder."""

    def __init__(
        self,
        merge: str,
        dedup: bool,
        parquet: Parquet,
        spool_directory: str | os.PathLike[str],
        bounds: RewriteBounds | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin.

        Args:
            pause: called again and again; raises to end the work.
        """
        self._merge = merge
        self._dedup = dedup
        self._parquet = parquet
        self._directory = spool_directory
        self._bounds = bounds or RewriteBounds()
        self._pause = pause
        self._schema: pa.Schema | None = None
        self._plain: set[str] = set()  # text columns that some input has without dictionaries
        self._sampled: list[pa.Table] = []

    def run(self, inputs: OpenInputs, sizes: Sequence[int], on_file: OnOutput) -> Rewritten:
        """Write the files.

        Args:
            sizes: of the inputs, in bytes.

        Raises:
            Odd: an input stays as it is; the others may be merged.
            CannotSort: nothing can be merged.
        """
        memory = SpoolMemory(self._directory, 32 * MB, 16 * MB)
        try:
            tables, total = self._look(inputs, sizes)
        except _TypesDiffer as error:
            raise self._rarer(inputs, str(error)) from None
        assert self._schema is not None
        columns = SortColumns.of(self._schema)
        form = self._form()
        self._input = Checksums(self._schema.names)
        self._dropped = Checksums(self._schema.names)
        self._outputs = Outputs(*(self._parquet, memory, self._schema, columns.names, on_file), self._bounds.outputs)
        try:
            if tables is not None:
                alike = [form.of(tables.pop(0)) for _ in range(len(tables))]
                for table in alike:
                    self._input.add(table)
                self._sort(alike, columns)
            else:
                self._sort_by_ranges(inputs, form, columns, total)
            self._outputs.close()
        except BaseException:
            self._outputs.abort()
            raise
        return Rewritten(self._input.without(self._dropped), self._dropped.rows)

    # Reading

    def _look(self, inputs: OpenInputs, sizes: Sequence[int]) -> tuple[list[pa.Table] | None, int]:
        """Read the columns of all inputs, and all rows if they fit in memory; else a sample, and estimate the bytes."""
        tables: list[pa.Table] | None = []
        read_bytes = told_bytes = seen_bytes = total = 0
        every = max(len(sizes) // _SAMPLE_FILES, 1)
        for number, context in enumerate(inputs()):
            self._pause()
            with context as file:
                self._join(file)
                total += file.nbytes
                seen_bytes += sizes[number]
                if total * sum(sizes) > self._bounds.sort_bytes * _UNLIKELY * seen_bytes:
                    tables = None  # as it seems; it is no error to sort on disk what would have fitted
                is_sampled = number % every == 0
                if tables is None and not is_sampled:
                    continue
                for table in file.tables(None if tables is not None else SortColumns.of(file.schema).names):
                    if is_sampled:
                        self._take_sample(table, file, len(sizes))
                    if tables is None:
                        continue
                    tables.append(table)
                    read_bytes += table.nbytes
                    told_bytes = total
                    if read_bytes > self._bounds.sort_bytes:
                        tables = None
        if read_bytes > told_bytes:  # footers tell less than what was read
            total = total * read_bytes // told_bytes
        return tables, total

    def _join(self, file: InputFile) -> None:
        metadata = file_metadata(file.database, file.measurement, self._merge)
        schema = file.schema.remove_metadata()
        if self._schema is not None:
            for field in schema:
                index = self._schema.get_field_index(field.name)
                if index >= 0 and self._schema.field(index).type != field.type:
                    raise _TypesDiffer(field.name)
            schema = union(self._schema, schema)
        self._schema = schema.with_metadata(metadata)
        self._plain |= {field.name for field in file.schema if field.type == pa.string()} - file.dictionaries

    def _rarer(self, inputs: OpenInputs, name: str) -> Odd:
        """Make the error for the inputs whose column of this name has not the type that most have."""
        types: dict[str, pa.DataType] = {}
        for context in inputs():
            self._pause()
            with context as file:
                if name in file.schema.names:
                    types[file.key] = file.schema.field(name).type
        [(usual, _)] = Counter(types.values()).most_common(1)
        keys = [key for key, type_ in types.items() if type_ != usual]
        reason = f"its column {name!r} is {types[keys[0]]}, and {usual} in most files of the hour"
        return Odd(keys[0], reason, keys)

    def _form(self) -> Form:
        assert self._schema is not None
        texts = {field.name for field in self._schema if field.type == pa.string()}
        return Form(self._schema, texts - self._plain)

    def _take_sample(self, table: pa.Table, file: InputFile, count: int) -> None:
        wanted = max(_SAMPLE_ROWS // min(count, _SAMPLE_FILES) * len(table) // max(file.rows, 1), 1)
        rows = np.linspace(0, len(table) - 1, min(wanted, len(table))).astype(np.int64)
        names = SortColumns.of(file.schema).names
        self._sampled.append(taken(table.select(names), rows))

    # Sorting

    def _sort(self, tables: list[pa.Table], columns: SortColumns) -> None:
        """Sort tables in memory, and append them to the outputs. `tables` is emptied."""
        if not tables:
            return
        table = joined(tables)
        self._pause()
        rows, superseded = order(table, columns, self._dedup)
        if superseded is not None and superseded.any():
            self._dropped.add(taken(table, rows[superseded]))
            rows = rows[~superseded]
        step = max(self._outputs.group_rows(table) // _STEPS, 1)  # of a whole row group, there would be three copies
        for start in range(0, len(rows), step):
            self._pause()
            self._outputs.add(taken(table, rows[start : start + step]))

    def _sort_by_ranges(self, inputs: OpenInputs, form: Form, columns: SortColumns, total: int) -> None:
        def read() -> Iterator[pa.Table]:
            for context in inputs():
                with context as file:
                    for table in file.tables():
                        alike = form.of(table)
                        self._input.add(alike)
                        yield alike

        sample = pa.concat_tables([form.of(table).select(columns.names) for table in self._sampled])
        self._sampled.clear()
        self._divide(read(), sample, form, columns, total, 0)

    def _divide(
        self, rows: Iterable[pa.Table], sample: pa.Table, form: Form, columns: SortColumns, total: int, depth: int
    ) -> None:
        """Cut rows into ranges, and sort each."""
        parts = min(int(total * _SPARE / self._bounds.sort_bytes) + 2, _MOST_RANGES)
        splitters = Splitters(joined([sample]), columns, parts)
        ranges = Ranges(self._directory, form.stored, splitters, self._bounds.collected_bytes)
        with closing(ranges):
            for table in rows:
                self._pause()
                ranges.add(table)
            ranges.flush()
            for file in ranges.files:
                self._sort_range(file, form, columns, depth)
                file.close()

    def _sort_range(self, file: SpillFile, form: Form, columns: SortColumns, depth: int) -> None:
        if file.nbytes <= self._bounds.sort_bytes:
            self._sort(list(file.tables()), columns)
        elif depth < _DEEPEST:
            step = max(file.rows // _SAMPLE_ROWS, 1)
            sample = pa.concat_tables(
                [taken(table.select(columns.names), np.arange(0, len(table), step)) for table in file.tables()]
            )
            self._divide(file.tables(), sample, form, columns, file.nbytes, depth + 1)
        else:
            self._sort_equal(file, columns)

    def _sort_equal(self, file: SpillFile, columns: SortColumns) -> None:
        """Append rows that no splitter divides, because their tags and time are equal."""
        last: pa.Table | None = None
        for table in file.tables():
            self._pause()
            together = table if last is None else pa.concat_tables([last, table]).unify_dictionaries()
            superseded = order(together, columns, True).superseded
            if superseded is None or int(superseded.sum()) < len(together) - 1:
                raise CannotSort("its rows need more memory to be sorted: raise compaction.memory_mb")
            last = together.slice(len(together) - 1)
            if self._dedup:
                self._dropped.add(together.slice(0, len(together) - 1))
            else:
                self._outputs.add(table)
        if self._dedup and last is not None:
            self._outputs.add(last)
