"""The steps of handover and commit at which the tests of tables strike, and a log that gives all of them work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.uploader_process import Step

_NEW_YEAR = 1_767_225_600
DATABASE = "db"
MEASUREMENTS = ("m", "o")
_SEGMENTS = 4
_ROWS = 20

HANDOVER = "arcpipe.upload.handover:Handover."
LEDGER = "arcpipe.tables.ledger:Ledger."
FILES = "arcpipe.tables.commit_file:CommitFiles."
BATCHES = "arcpipe.upload.batches:Batches."
FOLDER = "arcpipe.upload.batch_folder:BatchFolder."
DISK = "arcpipe.disk:Disk."
COMMITTER = "arcpipe.tables.committer:Committer."
MODEL = "tests.support.table_model:ModelTables."
ICEBERG = "arcpipe.tables.iceberg.change:Change."
CATALOGUE = "arcpipe.tables.iceberg.catalogue:Catalogue."
DELTA = "arcpipe.tables.delta.log:Log."


def around(name: str, function: str, nth: int = 1, pattern: str = "") -> Iterator[tuple[str, Step]]:
    yield f"before {name}", Step(function, "before", nth, pattern)
    yield f"after {name}", Step(function, "after", nth, pattern)


OF_THE_UPLOADER = dict(
    itertools.chain(
        around("the batch is marked as uploaded", BATCHES + "mark_uploaded"),
        around("the handover", HANDOVER + "hand_over"),
        around("the second handover", HANDOVER + "hand_over", 2),
        around("a number is issued", LEDGER + "issue"),
        around("the rename of the ledger", DISK + "rename", 1, "ledger.json"),
        around("the rename of the commit file", DISK + "rename", 1, r"/tables/0"),
        around("the rename of the second commit file", DISK + "rename", 2, r"/tables/0"),
        around("the sync of the commit file's folder", DISK + "sync_directory", 2, "/tables"),
        around("the segments are retired", BATCHES + "retire"),
        around("the removal of the batch's files", FOLDER + "remove", 1, "uploaded"),
    )
)
# Of all formats; the step of the format itself follows.
OF_THE_COMMITTER = dict(
    itertools.chain(
        around("the folder is synced", FILES + "sync"),
        around("the markers are checked", COMMITTER + "read_marker"),
        around("the first marker is read", COMMITTER + "read_marker", 3),
        around("the footers are read", COMMITTER + "read_footers"),
        around("the first attempt", COMMITTER + "attempt"),
        around("the second attempt", COMMITTER + "attempt", 2),
        around("the end of commit files", COMMITTER + "forget"),
        around("the removal of commit files", FILES + "remove"),
        around("the removal of the second commit file", DISK + "unlink", 2, r"/tables/0"),
    )
)
OF_FORMATS: dict[str, dict[str, Step]] = {
    "model": dict(around("the link of a version", MODEL + "_write")),
    "iceberg": dict(
        itertools.chain(
            around("the table is made", CATALOGUE + "create"),
            around("the attempt at the catalogue", CATALOGUE + "commit"),
            around("the change is attempted", ICEBERG + "attempt"),
        )
    ),
    "delta": dict(around("the log entry", DELTA + "commit")),
}


def make_log(directory: Path) -> dict[str, list[int]]:
    """Make sealed segments that become two batches of two tables. Returns the values of `n` by measurement."""
    log = WALDirectory(directory)
    log.make()
    ids = itertools.count()
    written: dict[str, list[int]] = {measurement: [] for measurement in MEASUREMENTS}
    with mock.patch("time.time_ns", return_value=_NEW_YEAR * 10**9):
        for slot in range(1, _SEGMENTS + 1):
            writer = WALWriter(log, slot, WALOptions(max_size_bytes=1 << 20))
            for measurement in MEASUREMENTS:
                group = Group()
                numbers = [next(ids) for _ in range(_ROWS)]
                written[measurement] += numbers
                columns = {"time": [_NEW_YEAR] * _ROWS, "n": numbers, "pad": ["x" * 20_000] * _ROWS}
                body = msgspec.msgpack.encode({"m": measurement, "columns": columns})
                group.add(envelope_prefix(KIND_COLUMNAR, DATABASE), body, _ROWS, writer.next_timestamp())
                writer.commit(group)
            writer.close()
    return written
