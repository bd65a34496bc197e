"""How `arcpipe status` writes figures: three digits and a unit, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from arcpipe.cli import client
from arcpipe.cli import report as status_report
from arcpipe.cli.rates import Live, Sample, are_apart
from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.counters import Counters
from arcpipe.errors import ArcpipeError
from arcpipe.monitoring import health, process_state, snapshot
from arcpipe.monitoring.committer_state import committer_state


@pytest.mark.parametrize(
    ("write", "figure", "text"),
    [
        (status_report._bytes, 0, "0 B"),
        (status_report._bytes, 999, "999 B"),
        (status_report._bytes, 1_000, "1.00 kB"),
        (status_report._bytes, 999_949, "1.00 MB"),
        (status_report._bytes, 21_474_836_480, "21.5 GB"),
        (status_report._per_second, None, "–"),
        (status_report._per_second, 0.0, "0"),
        (status_report._per_second, 0.004, "< 0.01"),
        (status_report._per_second, 9.996, "10.0"),
        (status_report._per_second, 9_999.0, "9,999"),
        (status_report._per_second, 1_234_567.0, "1.23 M"),
        (status_report._latency, None, "–"),
        (status_report._latency, 0.00025, "0.25 ms"),
        (status_report._latency, 0.9994, "999 ms"),
        (status_report._latency, 2.5, "2.5 s"),
        (status_report._latency, float("inf"), "off the scale"),
        (status_report._age, 59.9, "59 s"),
        (status_report._age, 61.0, "1 min 01 s"),
        (status_report._age, 7_260.0, "2 h 01 min"),
        (status_report._age, 200_000.0, "2 d 7 h"),
    ],
)
def test_figures_and_texts_are_written_for_people(write: Callable[[Any], str], figure: Any, text: str) -> None:
    assert write(figure) == text


def test_a_table_that_is_too_wide_becomes_several() -> None:
    """A table that is too wide becomes several with the first column in each."""
    table = status_report._Table(("name", "a", "b", "c"), [("ingest 1", "1" * 20, "2" * 20, "3" * 20)], left=1)
    assert list(status_report._parts(table, 80)) == [table]
    assert [part.columns for part in status_report._parts(table, 60)] == [("name", "a", "b"), ("name", "c")]
    assert [part.rows[0][-1] for part in status_report._parts(table, 10)] == ["1" * 20, "2" * 20, "3" * 20]
    words = status_report._Table(("at", "text"), [("12:00:00", "x" * 200)], left=2)
    assert list(status_report._parts(words, 80)) == [words]


# Other versions


def a_picture(uptime_seconds: float = 5.0, workers: int = 1) -> health.Picture:
    taken = snapshot.take(Settings(), Counters(workers), [])
    return health.picture(msgspec.structs.replace(taken, uptime_seconds=uptime_seconds), 1)


def answer_without(*fields: str) -> bytes:
    """The answer of a version that has no such fields yet."""
    answer = msgspec.to_builtins(a_picture())
    for field in fields:
        *places, name = field.split(".")
        part = answer
        for place in places:
            part = part[place]
        del part[name]
    return msgspec.json.encode(answer)


def test_an_answer_of_this_version_is_a_picture() -> None:
    assert isinstance(client.decode(answer_without()), health.Picture)


@pytest.mark.parametrize(
    "missing",
    [["instance.wal_unlisted"], ["instance.uploader"], ["verdict", "answered_by"], ["verdict.promise", "issues"]],
)
def test_of_the_answer_of_another_version_the_outline_is_told(missing: list[str]) -> None:
    found = client.decode(answer_without(*missing))
    assert isinstance(found, client.Outline)
    report = status_report.outline_of("http://x", found)
    assert report.title.startswith(f"arcpipe {a_picture().instance.version} at http://x, up 5.0 s")
    assert found.healthy is False  # nobody has started
    assert any("this version" in line for line in report.lines)
    assert [issue[1] for issue in report.issues] == (
        [] if "issues" in missing else [issue.message for issue in a_picture().issues]
    )
    assert "--json" in "\n".join(status_report._plain(report))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"healthy": true}', b'{"healthy": 1, "instance": {}}'])
def test_what_is_no_answer_of_any_version_is_told(body: bytes) -> None:
    with pytest.raises(client.NotAnswering, match="the answer is not that of an arcpipe: "):
        client.decode(body)


@pytest.mark.parametrize("url", ["http://a b/", "http://a/\r", "http://a:b", "http://", "//a"])
def test_a_url_that_cannot_be_asked_is_told_as_such(url: str) -> None:
    with pytest.raises(ArcpipeError, match="is not a URL such as"):
        client.StatusServer.at(url, "")


@pytest.mark.parametrize("url", ["http://any:arc_secret@a", "https://arc_secret@a/x", "http://u:arc_secret@a:b"])
def test_a_token_in_a_url_is_refused_and_not_shown(url: str) -> None:
    """It would not be sent, and stand in the title of every report."""
    with pytest.raises(ArcpipeError, match="it has a user or a password; give the token by") as told:
        client.StatusServer.at(url, "")
    assert "secret" not in str(told.value)


def test_a_token_that_cannot_be_sent_is_told_but_not_shown() -> None:
    with pytest.raises(ArcpipeError, match="the token has characters") as told:
        client.StatusServer.at("http://127.0.0.1:1", "arc_secret\nx")
    assert "secret" not in str(told.value)


# Between two pictures


@pytest.mark.parametrize(
    ("earlier", "later", "apart"),
    [
        ((5.0, 100.0, 1), (6.0, 101.0, 1), False),
        ((5.0, 100.0, 1), (7.5, 101.0, 1), False),  # an answer that came late
        ((5.0, 100.0, 1), (0.5, 101.0, 1), True),  # started anew
        ((0.2, 100.0, 1), (0.4, 103.0, 1), True),
        ((5.0, 100.0, 2), (6.0, 101.0, 4), True),
    ],
)
def test_pictures_of_two_starts_are_told_apart(
    earlier: tuple[float, float, int], later: tuple[float, float, int], apart: bool
) -> None:
    before, now = (Sample(a_picture(uptime, workers), at) for uptime, at, workers in (earlier, later))
    assert are_apart(before, now) is apart


def test_a_clock_that_was_set_between_two_pictures_changes_no_rate() -> None:
    def at(uptime: float, clock: float, records: int) -> Sample:
        picture = a_picture(uptime)
        [worker] = picture.instance.workers
        instance = msgspec.structs.replace(
            picture.instance, time=clock, workers=[msgspec.structs.replace(worker, records=records)]
        )
        return Sample(msgspec.structs.replace(picture, instance=instance), uptime)

    for clock in (1_000_001.0, 1_000_001.0 - 7200, 1_000_001.0 + 7200):
        before, now = at(5.0, 1_000_000.0, 100), at(6.0, clock, 300)
        assert not are_apart(before, now)
        assert Live.of([before, now]).workers[1].records == 200


# What the server does not know itself


def facts_of(**fields: Any) -> dict[str, str]:
    picture = a_picture()
    known = {"disk_total_bytes": 10_000_000_000, "disk_free_bytes": 4_000_000_000, "backlog_bytes": 5_000_000}
    picture = msgspec.structs.replace(picture, instance=msgspec.structs.replace(picture.instance, **known | fields))
    return dict(status_report.report_of("http://x", picture, Live.of([Sample(picture, 1.0)])).facts)


def test_old_figures_are_not_shown_as_those_of_now() -> None:
    """Figures that nobody measures any more are not shown as those of now."""
    facts = facts_of()
    assert facts["waiting"].startswith("5.00 MB in 0 segments, nothing waits; ")
    assert "disk 60% used, 4.00 GB free of 10.0 GB" in facts["WAL"]
    turn = facts_of(waiting_segments=2, waiting_bytes=2_000_000, next_batch_seconds=23.4)["waiting"]
    assert "nothing waits; 2.00 MB of it for the next batch, in 23 s at the latest; " in turn
    assert facts_of(wal_unlisted=True)["waiting"] == "not known: the WAL directory cannot be listed"
    assert "disk 60% used" in facts_of(wal_unlisted=True)["WAL"]
    for fields in ({"supervisor_alive": False, "measured_age_seconds": 75.0}, {"disk_total_bytes": 0}):
        assert "disk not known" in facts_of(**fields)["WAL"]
    hung = facts_of(supervisor_alive=False, measured_age_seconds=75.0)
    assert hung["waiting"] == "not known: nobody has measured it for 1 min 15 s"


# Files and compaction


def test_files_are_told_by_hour_and_by_their_rows() -> None:
    uploader = a_picture().instance.uploader
    busy = msgspec.structs.replace(uploader, files=120, rows=12_000, file_bytes=2_400_000)
    assert facts_of(uploader=busy, uptime_seconds=7200.0)["files"] == (
        "60.0 files/h, 100 rows and 20.0 kB per file, since the start"
    )
    assert facts_of(uploader=busy, uptime_seconds=5.0)["files"].startswith("– files/h, 100 rows")
    assert facts_of()["files"] == "none yet since the start"


def test_records_that_are_late_are_told_apart_from_those_that_wait_by_choice() -> None:
    fields = {"waiting_segments": 2, "waiting_bytes": 2_000_000, "next_batch_seconds": 23.4}
    by_choice = facts_of(**fields, oldest_unshipped_seconds=40.0, unshipped_limit_seconds=365.0)["waiting"]
    assert "oldest record 40 s; 2.00 MB of it for the next batch, in 23 s at the latest;" in by_choice
    late = facts_of(oldest_unshipped_seconds=400.0, unshipped_limit_seconds=365.0)["waiting"]
    assert "oldest record 6 min 40 s, late: more than 6 min 05 s;" in late


def test_compaction_and_retention_tell_what_they_did_and_what_waits() -> None:
    assert not {"compaction", "retention"} & facts_of().keys()
    state = process_state.compaction_state(Counters(1), 0)
    facts = facts_of(compaction=state)
    assert facts["compaction"].startswith("not started, no look yet, nothing waits; in all 0 files became 0, 0 B saved")
    assert "retention" not in facts
    busy = msgspec.structs.replace(
        state,
        pid=7,
        alive=True,
        last_look_age_seconds=90.0,
        waiting_hours=3,
        waiting_files=1200,
        files_in=5000,
        files_out=50,
        bytes_in=9_000_000,
        bytes_out=4_000_000,
        failures=1,
        expired_files=12,
        expired_bytes=3_000_000,
    )
    facts = facts_of(compaction=busy)
    assert facts["compaction"] == (
        "alive, last look 1 min 30 s ago, 1,200 files of 3 hours wait; in all 5,000 files became 50, 5.00 MB saved; "
        "1 failures, 0 files left as they are"
    )
    assert facts["retention"] == "12 files deleted, 3.00 MB"
    waits = msgspec.structs.replace(busy, retention_from=1_000_000_000.0)
    assert "nothing goes before 2001-09-" in facts_of(compaction=waits)["retention"]
    assert facts_of(compaction=msgspec.structs.replace(busy, stopped=True))["compaction"].startswith("needs a decision")


def test_tables_tell_what_is_committed_and_what_waits() -> None:
    assert "tables" not in facts_of()
    settings = load(None, {"ARCPIPE_TABLES_FORMAT": "iceberg", "ARCPIPE_WAL_DIR": "/nowhere"})
    state = committer_state(settings, Counters(1), 0)
    assert facts_of(committer=state)["tables"].startswith("iceberg, not started, last commit none yet, nothing waits; ")
    busy = msgspec.structs.replace(
        state,
        pid=7,
        alive=True,
        last_commit_age_seconds=90.0,
        waiting_batches=1_200,
        waiting_bytes=3_000_000,
        oldest_waiting_seconds=400.0,
        commits=5,
        files=6,
        rows=7_000,
        conflicts=2,
        failures=3,
        failing=1,
        refused=1,
    )
    assert facts_of(committer=busy)["tables"] == (
        "iceberg, alive, last commit 1 min 30 s ago, 1,200 batches wait (3.00 MB), the oldest for 6 min 40 s; "
        "in all 7,000 rows in 6 files by 5 commits, 2 conflicts, 3 failures; 2 tables have trouble"
    )
    assert facts_of(committer=msgspec.structs.replace(busy, stopped=True))["tables"].startswith("iceberg, stopped, ")
