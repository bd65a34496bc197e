"""The model of an instance: after each operation it must agree with its clients and with the operations."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any, Final, NamedTuple

from prometheus_client import parser

from tests.crash.day.instance import Instance, Lake
from tests.crash.day.load import ACKNOWLEDGED, NO_ANSWER, STALE, V2, Counts, Load
from tests.support.waiting import wait_until

# Of the machine that runs the tests.
_UNRELATED: Final = {"disk_usage"}
# Seconds for which a failed write is told. A moment earlier or later, either answer is right.
_FAILURES_SECONDS: Final = 300.0
_A_MOMENT: Final = 10.0
# A worker that is killed takes along what it has not yet published, which it does four times a second. The rest is what
# a busy machine may keep it waiting.
_UNPUBLISHED_SECONDS: Final = 0.25 + 2.0
_UPTIME_SECONDS: Final = 0.05
_PUBLISH_SECONDS: Final = 0.02
_FAILED_STARTS: Final = 3
_FAILED_STARTS_SECONDS: Final = 60.0
_CLOCK_SECONDS: Final = 3.0  # of a busy machine, between two looks at the clock
STATUSES: Final = ("202", "401", "503", "507")


class Effects(NamedTuple):
    """Traces of an operation that clients and figures may show. By default none."""

    outcomes: frozenset[str] = frozenset()  # other than acknowledgements
    no_answers: float = 0  # requests that may stay without an answer
    restarted: bool = False  # figures begin at 0
    worker_killed_at: float = 0.0
    uploads_twice: bool = False  # what is uploaded may be counted twice, or not
    restarts: tuple[int, int] = (0, 0)  # of workers and of the uploader, that are to be counted
    restarts_are_sure: bool = True
    writes_failed: bool = False


class _Base(NamedTuple):
    """Figures and what clients knew when they were taken."""

    figures: dict[str, int]
    counts: Counts


class Model:
    """Compares, after each operation, and remembers what the next comparison needs."""

    def __init__(self, instance: Instance, load: Load) -> None:
        self.lake = Lake(instance)
        self._instance = instance
        self._load = load
        self._judged = 0  # outcomes
        self._began = (0.0, 0.0)  # between which times the supervisor started
        self._checked = load.counts()
        self._ingest = self._upload = _Base({}, self._checked)
        self._restarts = (0, 0)
        self._deaths: list[float] = []
        self._failed_at = 0.0
        self._paused_at = 0.0
        self._last_problem = ""

    def note_start(self, since: float) -> None:
        """A supervisor has started after this time, and serves."""
        self._began = since, time.monotonic()
        zeros: dict[str, int] = Counter()
        self._ingest = self._upload = _Base(zeros, self._checked)
        self._restarts = (0, 0)
        self._deaths = []
        self._failed_at = 0.0

    def check(self, effects: Effects) -> None:
        """All live, writes are taken, no client noticed more than it may, and each figure is true."""
        instance, load = self._instance, self._load
        wait_until(lambda: sorted(instance.pids()) == instance.roles, f"{instance.roles}")
        load.wait_for_calm()
        self._note(effects)
        with load.paused():
            self._judge_outcomes(effects)
            self._paused_at = time.monotonic()
            self._last_problem = ""
            try:
                wait_until(lambda: not self._problem(effects), "true figures")
            except AssertionError:
                raise AssertionError(f"after {effects}: {self._last_problem}") from None
            self.judge_lake(self.lake)
            self._rebase(effects)

    def judge_stop(self, code: int) -> None:
        """The last words say what is left."""
        instance = self._instance
        words = instance.last_words()
        sealed, unsealed = len(instance.segments(".wal.sealed")), len(instance.segments(".wal"))
        batches = instance.unfinished_batches()
        left = [
            (unsealed, "segments that could not be recovered"),
            (sealed, "sealed segments"),
            (batches, "unfinished batches"),
        ]
        told = ", ".join(f"{count} {what}" for count, what in left if count)
        told = " and ".join(told.rsplit(", ", 1))
        if code == 4:
            assert "stopped; whether everything is uploaded is unknown: " in words, words
        elif told:
            assert f"stopped; the next start goes on with {told}. Keep the WAL directory" in words, (told, words)
        else:
            assert words.endswith("stopped; everything is uploaded"), words
            self.judge_lake(self.lake)
        assert code in (0, 4), (code, words)

    def judge_lake(self, lake: Lake) -> None:
        """Everything that was acknowledged is there, and nothing is there twice that was not asked for."""
        found = lake.read()
        load = self._load
        lost = sorted(load.acknowledged.keys() - found.keys())
        assert lost == [], f"{len(lost)} are lost"
        assert [number for number, count in found.items() if count > 1] == [], "twice"
        assert sorted(found.keys() & load.refused) == [], "refused, and written"
        assert found.keys() <= load.acknowledged.keys() | load.unknown, "never sent"
        assert lake.dead_letters() == []

    # Clients

    def _judge_outcomes(self, effects: Effects) -> None:
        outcomes = Counter(self._load.outcomes[self._judged :])
        self._judged = len(self._load.outcomes)
        unexpected = outcomes.keys() - effects.outcomes - {ACKNOWLEDGED, STALE, NO_ANSWER}
        assert not unexpected, f"clients saw {dict(outcomes)}"
        assert outcomes[NO_ANSWER] <= effects.no_answers, f"clients saw {dict(outcomes)}"

    # Figures

    def _note(self, effects: Effects) -> None:
        workers, uploader = effects.restarts
        self._restarts = self._restarts[0] + workers, self._restarts[1] + uploader
        self._deaths += [time.monotonic()] * (workers + uploader)
        if effects.writes_failed:
            self._failed_at = time.monotonic()

    def _problem(self, effects: Effects) -> str:
        """The first thing that is not as it should be by now; kept for the message."""
        asked = time.monotonic()
        status = self._instance.status()
        if not self._is_fresh(status, asked):
            return "workers have not published since the last answer"
        problem = (
            self._problem_of_processes(status, effects)
            or self._problem_of_time(status, asked)
            or self._problem_of_ingest(status, effects)
            or self._problem_of_backlog(status)
            or self._problem_of_uploads(status, effects)
            or self._problem_of_health(status)
            or self._problem_of_metrics(status)
            or self._problem_of_lake()
        )
        self._last_problem = problem
        return problem

    def _is_fresh(self, status: dict[str, Any], asked: float) -> bool:
        """Whether workers have published their figures since the last answer: they do, a moment after a heartbeat."""
        ages: list[float] = [worker["heartbeat_age_seconds"] for worker in status["instance"]["workers"]]
        return max(ages) <= asked - self._paused_at and min(ages) >= _PUBLISH_SECONDS

    def _problem_of_processes(self, status: dict[str, Any], effects: Effects) -> str:
        instance = status["instance"]
        told = {f"ingest {worker['slot']}": worker["pid"] for worker in instance["workers"]}
        told |= {"uploader": instance["uploader"]["pid"], "supervisor": self._instance.pid}
        if told != self._instance.pids():
            return f"processes are {self._instance.pids()}, and it tells {told}"
        if instance["sync_mode"] != self._instance.sync_mode:
            return f"the sync mode is {self._instance.sync_mode}, and it tells {instance['sync_mode']}"
        restarts = instance["worker_restarts"], instance["uploader_restarts"]
        if effects.restarts_are_sure and restarts != self._restarts:
            return f"restarts were {self._restarts}, and it tells {restarts}"
        if sum(restarts) > sum(self._restarts) + (not effects.restarts_are_sure):
            return f"restarts were {self._restarts}, and it tells {restarts}"
        return ""

    def _problem_of_time(self, status: dict[str, Any], asked: float) -> str:
        uptime = status["instance"]["uptime_seconds"]
        earliest, latest = self._began
        now = time.monotonic()
        if not asked - latest - _UPTIME_SECONDS <= uptime <= now - earliest + _UPTIME_SECONDS:
            return f"uptime is {uptime}, and it started {asked - earliest} to {asked - latest} s ago"
        self._began = max(earliest, asked - uptime), min(latest, now - uptime)  # the better from answer to answer
        ahead = status["instance"]["time"] - self._instance.clock.time()
        if abs(ahead) > _CLOCK_SECONDS:
            return f"its clock is {ahead} s ahead of what was set"
        return ""

    def _problem_of_ingest(self, status: dict[str, Any], effects: Effects) -> str:
        figures = _ingest_figures(status)
        base, counts = self._ingest, self._load.counts()
        unknown = counts.unknown - base.counts.unknown
        for name, most in self._taken_since(base, counts).items():
            told = figures[name] - base.figures[name]
            least = most
            if effects.restarted:
                least = 0
            elif effects.worker_killed_at:
                least -= self._unpublished(effects.worker_killed_at) + unknown
            if not least <= told <= most + unknown:
                return f"{name}: {told} since the last operation, and clients know of {least} to {most} and {unknown}"
        return ""

    def _taken_since(self, base: _Base, counts: Counts) -> dict[str, int]:
        acknowledged = counts.acknowledged - base.counts.acknowledged
        since = {status: counts.statuses[status] - base.counts.statuses[status] for status in STATUSES}
        return {"records": acknowledged, "accepted": acknowledged} | since

    def _unpublished(self, killed_at: float) -> int:
        """Acknowledgements that a worker may have counted for itself alone when it was killed."""
        since = killed_at - _UNPUBLISHED_SECONDS
        return sum(since <= at <= killed_at + 1.0 for at in self._load.acknowledged.values())

    def _problem_of_backlog(self, status: dict[str, Any]) -> str:
        """Whether anything waits, although nothing should: clients are silent, and the store is well."""
        instance = status["instance"]
        names = ("backlog_bytes", "backlog_segments", "oldest_unshipped_seconds", "unrecovered_segments")
        waiting = {name: instance[name] for name in names if instance[name]}
        if waiting:
            return f"something waits: {waiting}"
        # The supervisor measures four times a second, so its figures may be of a moment before.
        if self._instance.segments(".wal.sealed") or self._instance.unfinished_batches():
            return "segments wait, and it tells of none"
        told = {state: count["files"] for state, count in instance["segments"].items()}
        there = {
            "active": len(self._instance.segments(".wal")),
            "completed": len(self._instance.segments(".wal.sealed")),
            "recovered": len(self._instance.segments(".wal.recovered")),
            "free": len(os.listdir(self._instance.wal / "free")),
            "quarantine": 0,
        }
        return "" if told == there else f"segments are {there}, and it tells {told}"

    def _problem_of_uploads(self, status: dict[str, Any], effects: Effects) -> str:
        """All that was acknowledged is uploaded by now."""
        rows = status["instance"]["uploader"]["rows"] - self._upload.figures["rows"]
        counts = self._load.counts()
        acknowledged = counts.acknowledged - self._upload.counts.acknowledged
        unknown = counts.unknown - self._upload.counts.unknown
        if effects.uploads_twice or effects.restarted:
            return ""
        if not acknowledged <= rows <= acknowledged + unknown:
            return f"rows: {rows} since the last operation, and clients know of {acknowledged} and {unknown}"
        return ""

    def _problem_of_lake(self) -> str:
        """Whether it lacks anything. A segment that is being sealed is told neither as active nor as waiting."""
        lacking = sorted(self._load.acknowledged.keys() - self.lake.read().keys())
        return f"{len(lacking)} records are acknowledged and not in the store: {lacking[:10]}" if lacking else ""

    def _problem_of_health(self, status: dict[str, Any]) -> str:
        issues = {issue["code"]: issue["severity"] for issue in status["issues"] if issue["code"] not in _UNRELATED}
        wanted = {"restarts"} if any(self._restarts) else set()
        allowed = {"restarts", "segment_near_limit"}
        age = time.monotonic() - self._failed_at
        if self._failed_at and age < _FAILURES_SECONDS + _A_MOMENT:
            allowed.add("write_failures")
        if self._failed_at and age < _FAILURES_SECONDS - _A_MOMENT:
            wanted.add("write_failures")
        recent = [at for at in self._deaths if time.monotonic() - at < _FAILED_STARTS_SECONDS]
        if len(recent) >= _FAILED_STARTS:
            allowed.add("failed_starts")
        if not wanted <= issues.keys() <= allowed | wanted:
            return f"issues are {sorted(issues)}, and should be {sorted(wanted)}; also may {sorted(allowed)}"
        is_healthy = all(issue["severity"] == "info" for issue in status["issues"])
        return "" if status["healthy"] == is_healthy else f"healthy is {status['healthy']} with {issues}"

    def _problem_of_metrics(self, status: dict[str, Any]) -> str:
        """Whether they tell the same as the status, now that nothing changes."""
        text = self._instance.ask("/metrics").body.decode()
        samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]

        def total(name: str, **labels: str) -> float:
            return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

        figures = _ingest_figures(status)
        uploader = status["instance"]["uploader"]
        told = {
            "records": total("arcpipe_records_total"),
            "accepted": total("arcpipe_write_requests_total", outcome="accepted"),
            "202": total("arcpipe_http_requests_total", route=V2, status="202"),
            "rows": total("arcpipe_upload_rows_total"),
            "files": total("arcpipe_upload_files_total"),
            "backlog": total("arcpipe_backlog_bytes"),
            "listed": total("arcpipe_wal_listed"),
            "up": total("arcpipe_process_up"),
            "healthy": total("arcpipe_healthy"),
        }
        wanted = {name: figures[name] for name in ("records", "accepted", "202")}
        wanted |= {"rows": uploader["rows"], "files": uploader["files"], "backlog": 0, "listed": 1}
        wanted |= {"up": len(self._instance.roles), "healthy": status["healthy"]}
        return "" if told == wanted else f"metrics are {told}, and the status is {wanted}"

    def _rebase(self, effects: Effects) -> None:
        """Where figures could not be known, what is told now is what later ones are compared with."""
        status = self._instance.status()
        counts = self._load.counts()
        if effects.restarted or effects.worker_killed_at:
            self._ingest = _Base(_ingest_figures(status), counts)
        uploader = status["instance"]["uploader"]
        uploads = {"rows": uploader["rows"], "files": uploader["files"], "there": self.lake.files}
        if effects.restarted or effects.uploads_twice:
            self._upload = _Base(uploads, counts)
        before = self._upload.figures
        told, there = (uploads[name] - before[name] for name in ("files", "there"))
        assert told == there, f"{there} files are new in the store, and it tells {told}"
        self._restarts = status["instance"]["worker_restarts"], status["instance"]["uploader_restarts"]
        self._checked = counts


def _ingest_figures(status: dict[str, Any]) -> dict[str, int]:
    instance = status["instance"]
    workers = instance["workers"]
    by_status = instance["requests"].get(V2, {})
    return {
        "records": sum(worker["records"] for worker in workers),
        "accepted": sum(worker["writes_accepted"] for worker in workers),
        **{status: by_status.get(status, 0) for status in STATUSES},
    }
