"""Uploader and committer are killed, or meet an error, at each step of handover and commit: no row is lost or doubled.

The processes are the real ones. After the kill, the committer may run before the uploader goes on. Then a commit file
is done and gone by the time at which its batch is ended again.
"""

from __future__ import annotations

import itertools
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.config.load import load
from arcpipe.tables import open_format
from arcpipe.tables.base import NewFile, TableFormat
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.committer_process import Committers
from tests.crash.steps import Step
from tests.crash.uploader_process import Uploaders
from tests.support.compaction import OTHER_NODE, file_bytes, key_of, put, table_of
from tests.support.directories import batch_files
from tests.support.lake import lake_files
from tests.support.s3server import S3Bucket
from tests.support.sets import IS_LONG, long
from tests.support.stores import Store, local_store, s3_store
from tests.support.table_model import ModelTables

NEW_YEAR = 1_767_225_600
SEGMENTS = 4
ROWS = 20

HANDOVER = "arcpipe.upload.handover:Handover."
LEDGER = "arcpipe.tables.ledger:Ledger."
FILES = "arcpipe.tables.commit_file:CommitFiles."
REWRITER = "arcpipe.tables.rewriting:Rewriter."
LEARNED = "arcpipe.tables.learned:Learned."
LESSONS = "arcpipe.upload.lessons:Lessons."
STORE = "arcpipe.storage.local:LocalStore."
BATCHES = "arcpipe.upload.batches:Batches."
FOLDER = "arcpipe.upload.batch_folder:BatchFolder."
DISK = "arcpipe.disk:Disk."
COMMITTER = "arcpipe.tables.committer:Committer."
COMMITS = "arcpipe.tables.table_commits:TableCommits."
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
        around("the markers are checked", COMMITS + "read_marker"),
        around("the first marker is read", COMMITS + "read_marker", 3),
        around("the footers are read", COMMITS + "read_footers"),
        around("the first attempt", COMMITS + "attempt"),
        around("the second attempt", COMMITS + "attempt", 2),
        around("the end of commit files", COMMITTER + "forget"),
        around("the removal of commit files", FILES + "remove"),
        around("the removal of the second commit file", DISK + "unlink", 2, r"/tables/0"),
    )
)
# Of files whose types differ from those of a table that another node has made.
OF_REWRITING = dict(
    itertools.chain(
        around("a type is learned", LEARNED + "add"),
        around("the rename of what was learned", DISK + "rename", 1, "learned.json"),
        around("a copy is recorded", REWRITER + "record"),
        around("the rename of the record", DISK + "rename", 1, "twins.json"),
        around("the put of a copy", REWRITER + "put"),
        around("the put of the second copy", REWRITER + "put", 2),
        around("a copy is read back", REWRITER + "verify"),
        around("the footers of the copies are read", COMMITS + "read_footers", 3),
        around("the attempt with copies", COMMITS + "attempt", 2),
        around("the settlement", REWRITER + "settle"),
        around("the rename of the settled record", DISK + "rename", 3, "twins.json"),
        around("the deletion of the files", STORE + "delete_all"),
        around("the end of commit files", COMMITTER + "forget"),
        around("the end of the record", DISK + "unlink", 1, "twins.json$"),
    )
)
OF_LESSONS = dict(
    itertools.chain(
        around("the registry is taught", LESSONS + "teach"),
        around("the registry is saved", DISK + "rename", 1, "schema.json"),
        around("the second handover", HANDOVER + "hand_over"),
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


@pytest.fixture(scope="module")
def uploaders() -> Iterator[Uploaders]:
    with Uploaders() as running:
        yield running


@pytest.fixture(scope="module")
def committers() -> Iterator[Committers]:
    with Committers() as running:
        yield running


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """Make sealed segments that become two batches of two tables, and some dead letters."""
    source = WALDirectory(tmp_path_factory.mktemp("log") / "wal")
    source.make()
    ids = itertools.count()
    written: set[int] = set()
    with mock.patch("time.time_ns", return_value=NEW_YEAR * 10**9):
        for slot in range(1, SEGMENTS + 1):
            writer = WALWriter(source, slot, WALOptions(max_size_bytes=1 << 20))
            for measurement in ("m", "o"):
                group = Group()
                numbers = [next(ids) for _ in range(ROWS)]
                written.update(numbers)
                columns = {"time": [NEW_YEAR] * ROWS, "id": numbers, "pad": [f"{'x' * 20_000}"] * ROWS}
                body = msgspec.msgpack.encode({"m": measurement, "columns": columns})
                group.add(envelope_prefix(KIND_COLUMNAR, "db"), body, ROWS, writer.next_timestamp())
                writer.commit(group)
            writer.close()
    return Path(source.path), written


class Site:
    """A WAL directory, a lake, and tables of a format."""

    def __init__(
        self,
        log: tuple[Path, set[int]],
        base: Path,
        format_name: str,
        uploaders: Uploaders,
        committers: Committers,
        store: Store | None = None,
    ) -> None:
        self.wal = base / "wal"
        shutil.copytree(log[0], self.wal)
        self.ids = log[1]
        self.format_name = format_name
        self.store = store or local_store(base)
        self.settings = {
            **self.store.settings,
            "wal_dir": str(self.wal),
            "wal_min_free_mb": 0,
            "uploader_batch_mb": 2,
            "tables_format": "delta" if format_name == "model" else format_name,
        }
        self.model = base / "tables" if format_name == "model" else None
        self._uploaders = uploaders
        self._committers = committers

    def upload(self, **options: Any) -> int:
        return self._uploaders.run(self.wal, self.settings, **options).exit_code

    def commit(self, **options: Any) -> int:
        return self._committers.run(self.wal, self.settings, model=self.model, **options).exit_code

    def make_tables(self) -> None:
        """Have another node make the tables, with integers where this one has texts."""
        lake = self.store.read()
        tables = self.tables()
        try:
            for number, table in enumerate((("db", "m"), ("db", "o")), 1):
                key = key_of(1, node=OTHER_NODE, database=table[0], measurement=table[1])
                content = table_of([{"time": 0, "id": -number, "pad": number}])
                path = put(lake, key, file_bytes(content, self.wal, *table))
                tables.commit(table, [NewFile(key, path.stat().st_size, 1, pq.read_metadata(path))], OTHER_NODE, 1)
        finally:
            tables.close()

    def check_types(self) -> None:
        """Each table has its columns' types in all files, and each text of this node is in the sibling."""
        texts = 0
        for path in lake_files(self.store.read()):
            found = pq.read_table(path)
            assert found["pad"].type == pa.int64() if "pad" in found.schema.names else "pad_str" in found.schema.names
            if "pad_str" in found.schema.names:
                texts += len(found["pad_str"].drop_null())
        assert texts == len(self.ids)

    def tables(self) -> TableFormat:
        if self.model is not None:
            return ModelTables(self.model)
        settings = load(None, {f"ARCPIPE_{name.upper()}": str(value) for name, value in self.settings.items()})
        return open_format(settings.tables, settings.storage, settings.wal.dir)

    def check(self) -> None:
        """Every row is in a table once, every object is in a table, and nothing is left."""
        tables = self.tables()
        try:
            keys = [key for table in tables.all_tables() for key in tables.files(table)]
        finally:
            tables.close()
        assert [key for key, count in Counter(keys).items() if count > 1] == [], "files are there twice"
        lake = self.store.read()
        ids = Counter(number for key in keys for number in pq.read_table(lake / key, columns=["id"])["id"].to_pylist())
        assert [number for number, count in ids.items() if count > 1] == [], "rows are there twice"
        assert self.ids - ids.keys() == set(), "rows are missing"
        assert {str(path.relative_to(lake)) for path in lake_files(lake)} == set(keys)
        assert batch_files(self.wal) == []
        assert list((self.wal / "tables").glob("0*.json*")) == []
        assert not (self.wal / "tables" / "twins.json").exists()
        assert "Traceback" not in Path(f"{self.wal}.log").read_text()


@pytest.fixture
def make(
    log: tuple[Path, set[int]], tmp_path: Path, uploaders: Uploaders, committers: Committers
) -> Callable[[str], Site]:
    return lambda format_name: Site(log, tmp_path, format_name, uploaders, committers)


def test_nothing_disturbs(make: Callable[[str], Site]) -> None:
    """The tests below rely on several batches of several tables."""
    site = make("model")
    assert site.upload() == 0
    assert len(list((site.wal / "tables").glob("0*.json"))) == 2
    assert site.commit() == 0
    site.check()


@pytest.mark.parametrize("step", OF_THE_UPLOADER)
@pytest.mark.parametrize(
    "committer_is_first", [pytest.param(False, marks=long, id=""), pytest.param(True, id="the committer is first")]
)
def test_the_uploader_is_killed_at_each_step(make: Callable[[str], Site], step: str, committer_is_first: bool) -> None:
    site = make("model")
    assert site.upload(die=OF_THE_UPLOADER[step]) == -9
    if committer_is_first:
        assert site.commit() == 0
    assert site.upload(restart_server=committer_is_first) == 0
    assert site.commit() == 0
    site.check()


@long
@pytest.mark.parametrize("step", OF_THE_UPLOADER)
def test_the_uploader_meets_an_error_at_each_step(make: Callable[[str], Site], step: str) -> None:
    site = make("model")
    assert site.upload(fail=OF_THE_UPLOADER[step]) == 0
    assert site.commit() == 0
    site.check()


# Of the real formats, each of which takes a second to load: what is not in the release set only.
ALWAYS = {"after the table is made", "after the attempt at the catalogue", "after the log entry"}


def committer_steps(format_name: str, always: set[str]) -> Iterator[Any]:
    """The steps of a format; for the real ones most of them in the release set."""
    for name, step in (OF_FORMATS[format_name] | OF_THE_COMMITTER).items():
        marks = () if format_name == "model" or name in always else (long,)
        yield pytest.param(format_name, step, marks=marks, id=f"{format_name}, {name}")


KILLS = [step for format_name in OF_FORMATS for step in committer_steps(format_name, ALWAYS)]
ERRORS = [step for format_name in OF_FORMATS for step in committer_steps(format_name, set())][:: 2 - IS_LONG]


@pytest.mark.parametrize(("format_name", "step"), KILLS)
def test_the_committer_is_killed_at_each_step(make: Callable[[str], Site], format_name: str, step: Step) -> None:
    site = make(format_name)
    assert site.upload() == 0
    assert site.commit(die=step) == -9
    assert site.commit() == 0
    site.check()


@pytest.mark.parametrize(("format_name", "step"), ERRORS)
def test_the_committer_meets_an_error_at_each_step(make: Callable[[str], Site], format_name: str, step: Step) -> None:
    site = make(format_name)
    assert site.upload() == 0
    assert site.commit(fail=step) == 0
    assert site.commit() == 0
    site.check()


@long
@pytest.mark.parametrize("step", (OF_FORMATS["delta"] | OF_THE_COMMITTER).values(), ids=str)
@pytest.mark.parametrize("how", ["die", "fail"])
def test_each_step_of_a_committer_on_s3(
    log: tuple[Path, set[int]],
    tmp_path: Path,
    uploaders: Uploaders,
    committers: Committers,
    s3: S3Bucket,
    step: Step,
    how: str,
) -> None:
    site = Site(log, tmp_path, "delta", uploaders, committers, s3_store(s3, tmp_path))
    assert site.upload() == 0
    assert site.commit(**{how: step}) == (-9 if how == "die" else 0)
    assert site.commit() == 0
    site.check()


@long
@pytest.mark.parametrize("format_name", OF_FORMATS)
@pytest.mark.parametrize("seed", range(5))
def test_both_are_killed_again_and_again(make: Callable[[str], Site], format_name: str, seed: int) -> None:
    pick = random.Random(seed)
    site = make(format_name)
    for _ in range(8):
        site.upload(die=pick.choice([*OF_THE_UPLOADER.values()]), restart_server=pick.random() < 0.5)
        site.commit(die=pick.choice([*(OF_FORMATS[format_name] | OF_THE_COMMITTER).values()]))
    assert site.upload() == 0
    assert site.commit() == 0
    site.check()


@pytest.fixture
def differing(make: Callable[[str], Site]) -> Callable[[str], Site]:
    """Make a site whose tables another node has made, with another type."""

    def made(format_name: str) -> Site:
        site = make(format_name)
        site.make_tables()
        return site

    return made


def rewriting_steps(always: str) -> Iterator[Any]:
    """The steps with each format; only those of the model that match a pattern are not `long`."""
    for format_name in OF_FORMATS:
        for name, step in OF_REWRITING.items():
            is_short = format_name == "model" and re.search(always, name)
            yield pytest.param(*(format_name, step), marks=() if is_short else (long,), id=f"{format_name}, {name}")


@pytest.mark.parametrize(("format_name", "step"), [*rewriting_steps("^after|end of the record")])
def test_the_committer_is_killed_while_it_rewrites(
    differing: Callable[[str], Site], format_name: str, step: Step
) -> None:
    site = differing(format_name)
    assert site.upload() == 0
    assert site.commit(die=step) == -9
    assert site.commit() == 0
    site.check()
    site.check_types()


@pytest.mark.parametrize(("format_name", "step"), [*rewriting_steps("before the (settl|end of the record|put of a)")])
def test_the_committer_meets_an_error_while_it_rewrites(
    differing: Callable[[str], Site], format_name: str, step: Step
) -> None:
    site = differing(format_name)
    assert site.upload() == 0
    assert site.commit(fail=step) == 0
    assert site.commit() == 0
    site.check()
    site.check_types()


@pytest.mark.parametrize("step", OF_LESSONS)
@pytest.mark.parametrize("how", ["die", pytest.param("fail", marks=long)])
def test_the_uploader_follows_the_tables_types_through_each_step(
    differing: Callable[[str], Site], step: str, how: str
) -> None:
    site = differing("model")
    assert site.upload(die=OF_THE_UPLOADER["before the second handover"]) == -9
    assert site.commit() == 0
    assert site.upload(**{how: OF_LESSONS[step]}) == (-9 if how == "die" else 0)
    assert site.upload() == 0
    assert site.commit() == 0
    site.check()
    site.check_types()


# The harness has to notice bugs


class Planted(NamedTuple):
    plant: dict[str, object]
    die: Step
    complaint: str


@pytest.mark.parametrize(
    "planted",
    [
        Planted(
            {f"{MODEL}checks_markers": False, f"{COMMITS}_without_present": "all"},
            OF_THE_COMMITTER["after the first attempt"],
            "files are there twice",
        ),
    ],
    ids=["the marker is not looked at"],
)
def test_a_planted_bug_is_found(make: Callable[[str], Site], planted: Planted) -> None:
    site = make("model")
    assert site.upload() == 0
    assert site.commit(die=planted.die, plant=planted.plant) == -9
    site.commit(plant=planted.plant)
    with pytest.raises(AssertionError, match=planted.complaint):
        site.check()


class Sums(NamedTuple):
    """What a run of the committer counted."""

    commits: int
    files: int


def test_the_counters_tell_what_was_committed(make: Callable[[str], Site]) -> None:
    site = make("model")
    site.upload()
    done = site._committers.run(site.wal, site.settings, model=site.model)
    counted = Sums(done.counters["commits"], done.counters["files"])
    assert counted == (2, 4)
    assert done.counters["rows"] == len(site.ids)
    assert done.counters["waiting_batches"] == 0
