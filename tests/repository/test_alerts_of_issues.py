"""From what is wrong with an instance to the alert: a snapshot, its metrics as exposed, and Prometheus' own judgement.

`test_ops_files.py` has the rules over time, and those about what no snapshot can tell.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client import parser

from arcpipe.config.load import load
from arcpipe.counters import Counters
from arcpipe.monitoring import health, metrics, snapshot
from arcpipe.monitoring.committer_state import committer_state
from arcpipe.monitoring.directory_look import Unacknowledged
from arcpipe.monitoring.process_state import compaction_state
from arcpipe.monitoring.snapshot import Ending, Snapshot
from arcpipe.wal.directory import WALDirectory
from tests.repository.test_ops_files import BY_THEMSELVES, NAME, OPS, all_rules, judged, needs_promtool, rules

DAY = 86_400
Change = Callable[[Snapshot], Snapshot]


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Of an instance that is well: every process has just sent a heartbeat, and there is space."""
    settings = load(None, {"ARCPIPE_WAL_DIR": str(tmp_path_factory.mktemp("well") / "wal")})
    WALDirectory(settings.wal.dir).make()
    taken = snapshot.take(settings, Counters(2), ["/write", "/metrics"])
    return msgspec.structs.replace(
        taken,
        workers=[msgspec.structs.replace(worker, alive=True, pid=1) for worker in taken.workers],
        uploader=msgspec.structs.replace(taken.uploader, alive=True, pid=1),
        disk_total_bytes=1 << 41,
        disk_free_bytes=1 << 40,
        uptime_seconds=1000.0,
    )


def of(**fields: Any) -> Change:
    return lambda taken: msgspec.structs.replace(taken, **fields)


def of_worker(**fields: Any) -> Change:
    return lambda taken: msgspec.structs.replace(
        taken, workers=[msgspec.structs.replace(taken.workers[0], **fields), *taken.workers[1:]]
    )


def of_uploader(**fields: Any) -> Change:
    return lambda taken: msgspec.structs.replace(taken, uploader=msgspec.structs.replace(taken.uploader, **fields))


def of_compaction(**fields: Any) -> Change:
    """Change the compaction process, which is off by default."""
    state = compaction_state(Counters(1), 0)
    state = msgspec.structs.replace(state, **{"alive": True, "pid": 1} | fields)
    return lambda taken: msgspec.structs.replace(taken, compaction=state)


def of_committer(**fields: Any) -> Change:
    """Change the committer, which is there with tables only."""
    settings = load(None, {"ARCPIPE_TABLES_FORMAT": "iceberg", "ARCPIPE_WAL_DIR": "/nowhere"})
    state = committer_state(settings, Counters(1), 0)
    state = msgspec.structs.replace(state, **{"alive": True, "pid": 1} | fields)
    return lambda taken: msgspec.structs.replace(taken, committer=state)


def found(code: str) -> Change:
    return of(unacknowledged={code: Unacknowledged(2, 3, "")})


def ends(kind: str, days: float) -> Change:
    return lambda taken: msgspec.structs.replace(
        taken, endings={kind: Ending("it", taken.time + days * DAY, taken.time + days * DAY - 14 * DAY)}
    )


WRONG: list[tuple[str, Change]] = [
    ("worker_down", of_worker(alive=False)),
    ("worker_down", of_worker(pid=0, alive=False)),
    ("uploader_down", of_uploader(alive=False)),
    ("supervisor_down", of(supervisor_alive=False, measured_age_seconds=60.0)),
    ("failed_starts", of_worker(failed_starts=3)),
    ("failed_starts", of_uploader(failed_starts=30)),
    ("writes_refused", of(backlog_bytes=1 << 35, max_backlog_bytes=1 << 34)),
    ("writes_refused", of(disk_free_bytes=1 << 20)),
    ("write_failures", of_worker(last_failure_age_seconds=250.0, write_failures=7)),
    ("wal_unlisted", of(wal_dir_problem="[Errno 13] Permission denied")),
    ("wal_unlisted", of(wal_unlisted=True)),
    ("wal_replaced", of(wal_replaced=True)),
    ("lock_lost", of(wal_unlocked=True)),
    ("disk_usage", of(disk_free_bytes=1 << 38)),
    ("segment_too_old", of_worker(segment_age_seconds=8000.0)),
    ("segment_too_old", of(unsealed_age_seconds=8000.0)),
    ("uploads_behind", of(oldest_unshipped_seconds=400.0)),
    ("uploads_behind", of(backlog_bytes=3 << 32)),
    ("credentials_refused", of_uploader(denied_age_seconds=20.0, last_upload_age_seconds=None)),
    ("uploads_stopped", of_uploader(stopped=True)),
    ("unreadable_segments", of(unrecovered_segments=1, unrecovered_first="worker-1")),
    ("unreadable_segments", of_uploader(unreadable_segments=1)),
    ("damaged_manifests", of_uploader(damaged_manifests=1)),
    *(
        (code, found(code))
        for code in ("damaged_entries", "lost_segments", "lost_records", "dead_letters", "quarantine")
    ),
    ("findings_unreadable", of(findings_problem="findings.json is damaged")),
    ("certificate_expires", ends("certificate", 10)),
    ("certificate_expires", ends("certificate", -1)),
    ("client_ca_expires", ends("client_ca", -1)),
    ("token_expires", ends("token", 10)),
    ("reload_refused", of(reload_refused=["the tokens file"])),
    ("compaction_down", of_compaction(alive=False)),
    ("compaction_down", of_compaction(failed_starts=3)),
    ("compaction_failing", of_compaction(failed_looks=5)),
    ("compaction_stopped", of_compaction(stopped=True, failed_looks=5)),
    ("compaction_mismatch", of_compaction(mismatches=1)),
    ("retention_waits", of_compaction(retention_from=4e9)),
    ("keys_unreadable", of_uploader(unreadable_key_files=1)),
    ("keys_cut", of_uploader(keys_expired=7, keys_cut=3)),
    ("tables_stopped", of_committer(stopped=True, reason="a marker that was never issued")),
    ("table_refused", of_committer(refused=1)),
    ("table_files_missing", of_committer(missing=2)),
    ("tables_held_back", of_committer(held_back=True)),
    ("tables_unreachable", of_committer(unreachable=True, reason="the catalogue does not answer")),
    ("committer_down", of_committer(alive=False)),
    ("committer_down", of_committer(failed_starts=3)),
    ("tables_behind", of_committer(waiting_batches=3, oldest_waiting_seconds=361.0)),
    ("tables_behind", of_committer(waiting_batches=3, waiting_bytes=60 << 30)),
    ("commit_interval_short", of_committer(round_seconds=31.0)),
]
# What comes with it: a disk without room is full, and the backlog that is above its limit is above the half of it.
ALSO = {"writes_refused": {"disk_usage", "uploads_behind"}}
NOTHING_TO_WAKE_FOR: list[Change] = [
    of(draining=True),
    of(worker_restarts=1, uploader_restarts=1),
    of(unshipped_limit_seconds=900.0, oldest_unshipped_seconds=850.0),
    of_worker(segment_bytes=95 << 20),
    of_compaction(retention_from=1e9),  # the day is over, and the next look deletes
    of_compaction(restarts=1, failed_starts=2, failed_looks=4, failures=9),
    of_committer(restarts=1, failed_starts=2),
    of_uploader(repeated=3, other_bodies=1, keys_expired=3),
    of_committer(waiting_batches=3, oldest_waiting_seconds=350.0, conflicts=5, failures=5, failing=1, recreated=1),
    of_uploader(rescued=3, dead_letters=3, damaged=3, lost_segments=3),  # counted, and acknowledged since
    ends("certificate", 20),
]


def exposed(taken: Snapshot) -> dict[str, str]:
    """The samples that rules are about, in promtool's notation, as series that were there all the time."""
    used = {name for rule in all_rules() for name in NAME.findall(rule["expr"])}
    text, _ = metrics.render(taken)
    samples = [one for family in parser.text_string_to_metric_families(text.decode()) for one in family.samples]
    series = {'up{job="arcpipe",instance="a"}': "1x20"}
    for one in samples:
        if one.name in used:
            labels = {**one.labels, "job": "arcpipe", "instance": "a"}
            shown = ",".join(f'{name}="{value}"' for name, value in labels.items())
            series[f"{one.name}{{{shown}}}"] = f"{one.value:g}x20"
    return series


def scenario(name: str, taken: Snapshot, alerts: set[str]) -> dict[str, Any]:
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)]
    return {
        "name": name,
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in exposed(taken).items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing",severity!="info"})',
                "eval_time": "5m",
                "exp_samples": firing,
            }
        ],
    }


def alert_of(issue: health.Issue) -> str:
    """The rule that is about an issue."""
    [name] = [
        rule["alert"]
        for rule in rules()
        if rule["labels"]["code"] == issue.code
        and "arcpipe_issues" in rule["expr"]
        and rule["labels"]["severity"] == issue.severity
    ]
    return str(name)


def test_every_issue_is_provoked_here() -> None:
    assert {code for code, _ in WRONG} == judged() - BY_THEMSELVES


def test_an_issue_has_the_severity_of_its_alert(well: Snapshot) -> None:
    """And there is one rule for it."""
    assert [issue.code for issue in health.judge(well)] == []
    for code, change in WRONG:
        issues = health.judge(change(well))
        assert {issue.code for issue in issues} <= {code} | ALSO.get(code, set())
        assert code in {issue.code for issue in issues}
        assert all(alert_of(issue) for issue in issues)


@pytest.mark.slow
@needs_promtool
def test_whatever_is_wrong_wakes_somebody_and_nothing_else_does(well: Snapshot, tmp_path: Path) -> None:
    tests = [scenario("well", well, set())]
    tests += [scenario(f"quiet {number}", change(well), set()) for number, change in enumerate(NOTHING_TO_WAKE_FOR)]
    for code, change in WRONG:
        taken = change(well)
        waking = {alert_of(issue) for issue in health.judge(taken) if issue.severity != "info"}
        tests.append(scenario(code, taken, waking))
    file = tmp_path / "tests.yml"
    content = {"rule_files": [str(OPS / "alerts.yml")], "evaluation_interval": "30s", "tests": tests}
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)],
        env=os.environ | {"GOGC": "400"},  # a fifth less processor time
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
