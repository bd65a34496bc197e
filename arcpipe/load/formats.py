"""Which reader a file has: by the name of its format, by the end of its name, or by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Final, get_args

from arcpipe.load import annotated_csv, csv_files, lines, ndjson
from arcpipe.load.chunks import BadInput, Chunk
from arcpipe.load.plan import BadPlan, FileFormat, Plan
from arcpipe.load.source import Source

FORMATS: Final[tuple[FileFormat, ...]] = get_args(FileFormat)

_ENDS: Final[dict[FileFormat, tuple[str, ...]]] = {
    "lines": (".lp", ".line", ".lines", ".influx", ".txt"),
    "csv": (".csv",),
    "ndjson": (".ndjson", ".jsonl", ".json"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".arrows", ".ipc", ".feather"),
}
SUFFIXES: Final = tuple(suffix for suffixes in _ENDS.values() for suffix in suffixes)
"""Ends of names of files that can be loaded, without that of a compression."""

_MAGIC: Final[dict[bytes, FileFormat]] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"# INFLUXDB EXPORT": "lines",
    b"# DDL": "lines",
}


def format_of(source: Source) -> FileFormat:
    """Tell the format of a file.

    Raises:
        BadPlan: nothing says it.
        BadInput: it cannot be read.
    """
    with source.open() as file:
        start = file.read(64)
    name = source.plain_name
    for magic, format_ in _MAGIC.items():
        if start.startswith(magic):
            return format_
    for format_, suffixes in _ENDS.items():
        if name.endswith(suffixes):
            return "annotated-csv" if format_ == "csv" and annotated_csv.is_annotated(start) else format_
    raise BadPlan(f"{source.path}: its name does not say what it is: give --format {'|'.join(FORMATS)}")


class Reader:
    """The chunks of one file. Everything that decides about them is found before the first one is sent."""

    def __init__(self, source: Source, plan: Plan) -> None:
        """Read the file once or twice: for its digest, and for the types of its columns.

        Raises:
            BadInput, BadPlan: it cannot be loaded.
        """
        self.source = source
        self.plan = plan.of_path(str(source.path.absolute()))
        self.name = str(source.path)
        self.digest = source.hash()
        self._csv: csv_files.CSVTypes | None = None
        self._floats: ndjson.Floats = frozenset()
        if source.compression and plan.format in ("parquet", "arrow"):
            raise BadInput(f"{self.name}: decompress it first: {plan.format} is read from more than one place at once")
        if plan.format == "csv":
            with source.open() as file:
                self._csv = csv_files.survey(file, self.plan, self.name)
        elif plan.format == "annotated-csv":
            with source.open() as file:
                annotated_csv.survey(file, self.plan, self.name)
        elif plan.format == "ndjson":
            with source.open() as file:
                self._floats = ndjson.survey(file, self.plan, self.name)
        source.check_unchanged()

    def key(self, chunk: Chunk) -> str:
        """Return the key of a chunk."""
        return f"load-{self.digest}-{self.plan.key()}-{chunk.label}"

    def chunks(self) -> Iterator[Chunk]:
        """Read the file again, and make its chunks.

        Raises:
            BadInput: it cannot be read, is malformed, or has changed.
        """
        with self.source.open() as file:
            for chunk in self._chunks_of(file):
                self.source.check_unchanged()  # else new content would get keys of the old one
                yield chunk
        self.source.check_unchanged()

    def _chunks_of(self, file: IO[bytes]) -> Iterator[Chunk]:
        from arcpipe.load import arrow_files

        plan, name = self.plan, self.name
        match plan.format:
            case "lines":
                return lines.read(file, plan, name)
            case "csv":
                assert self._csv is not None
                return csv_files.read(file, plan, name, self._csv)
            case "annotated-csv":
                return annotated_csv.read(file, plan, name)
            case "ndjson":
                return ndjson.read(file, plan, name, self._floats)
            case "parquet":
                return arrow_files.read_parquet(file, plan, name)
            case "arrow":
                return arrow_files.read_arrow(file, plan, name)


def read(source: Source, plan: Plan, format_: FileFormat | None = None) -> Reader:
    """Return the reader of a file, by its format or by what the file says. Raises BadInput and BadPlan."""
    return Reader(source, replace(plan, format=format_ or format_of(source)))
