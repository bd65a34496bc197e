"""Alert rules and dashboard: valid, complete, and about metrics that exist."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcpipe.config.load import load
from arcpipe.counters import Committer, Counters, Uploader
from arcpipe.monitoring import issues, snapshot
from arcpipe.monitoring.metrics import families
from arcpipe.wal.directory import WALDirectory

OPS = Path(__file__).parents[2] / "ops"
NAME = re.compile(r"\barcpipe_[a-z0-9_]+")
# What a rule has for itself, because no process can tell it of itself or it is a matter of the scraper's history.
ONLY_ALERTS = {
    *("instance_down", "instance_absent", "crash_loop", "process_flapping", "nobody_is_served", "clients_refused"),
    *("slow_acknowledgement", "open_files", "other_issue"),
}
# Issues of severity info that are no reason to wake anybody, but for what a scraper sees of them over time.
BY_THEMSELVES = {"restarts", "segment_near_limit", "rescued_values"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool here: Debian's package prometheus has it"
)


@functools.cache
def all_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for rule in all_rules() if "alert" in rule]


def judged() -> set[str]:
    """The codes of health's issues."""
    return {rule.code for rule in issues.RULES}


def panels() -> list[dict[str, Any]]:
    found = json.loads((OPS / "grafana-dashboard.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def existing_names(tmp_path: Path) -> set[str]:
    """Of every sample that /metrics may have."""
    wanted = {"ARCPIPE_TABLES_FORMAT": "delta", "ARCPIPE_COMPACTION_ENABLED": "true"}
    settings = load(None, {"ARCPIPE_WAL_DIR": str(tmp_path / "wal")} | wanted)
    WALDirectory(settings.wal.dir).make()
    counters = Counters(1)
    counters.uploader[Uploader.LAST_UPLOAD_US] = counters.committer[Committer.LAST_COMMIT_US] = 1
    names = set()
    for family in families(snapshot.take(settings, counters, [])):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "info": ["_info"]}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


def test_each_alert_is_about_metrics_that_exist(tmp_path: Path) -> None:
    names = existing_names(tmp_path) | {rule["record"].split(":")[1] for rule in all_rules() if "record" in rule}
    for rule in all_rules():
        used = set(NAME.findall(rule["expr"]))
        assert used <= names, rule
        assert used or "up{" in rule["expr"]


def test_panels_and_metrics_are_about_each_other(tmp_path: Path) -> None:
    """Each panel is about metrics that exist and each metric has a panel."""
    names = existing_names(tmp_path)
    used = set()
    for panel in panels():
        here = {name for target in panel["targets"] for name in NAME.findall(target["expr"])}
        assert here, panel["title"]
        assert here <= names, panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        used |= here
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used}
    missing = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} - bases
    assert missing == {"arcpipe_build_info"}


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            assert x < 24
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_there_is_an_alert_for_each_condition_of_health() -> None:
    conditions = judged()
    assert len(conditions) >= 10
    assert {rule["labels"]["code"] for rule in rules()} - ONLY_ALERTS == conditions
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_alerts_on_issues_are_about_all_of_them_and_have_their_codes() -> None:
    """One rule each; and one for what a server that is newer than the rules says, which leaves these out."""
    *by_code, other = [rule for rule in rules() if "arcpipe_issues" in rule["expr"]]
    for rule in by_code:
        assert rule["expr"].startswith(f'arcpipe_issues{{code="{rule["labels"]["code"]}"')
    assert {rule["labels"]["code"] for rule in by_code} == judged() - BY_THEMSELVES
    left_out = {code for codes in re.findall(r'code!~"([^"]*)"', other["expr"]) for code in codes.split("|")}
    assert left_out == judged() - BY_THEMSELVES


def test_the_texts_of_alerts_use_labels_that_there_are() -> None:
    """A label that is lost in an aggregation would be an empty place in a text."""
    for rule in rules():
        there = {"job", "instance", "code", "severity"}
        if "by (" not in rule["expr"] and "job_instance:" not in rule["expr"]:
            there |= {"process", "worker"} if "arcpipe_issues" not in rule["expr"] else set()
        if "absent(" in rule["expr"]:
            there = {"job"}
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= there, rule["alert"]


@needs_promtool
def test_promtool_finds_the_rules_valid() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(OPS / "alerts.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Metrics of an instance that is well, as Prometheus has them after twenty minutes of a sample each 15 s: name, then the
# series in promtool's notation (`0x80` is 81 zeros, `_` no sample).
SAMPLES = 81
WELL = {
    'up{job="arcpipe"}': "1x80",
    "arcpipe_uptime_seconds": "1000+15x80",
    'arcpipe_process_up{process="ingest 1"}': "1x80",
    'arcpipe_process_up{process="uploader"}': "1x80",
    'arcpipe_process_start_time_seconds{process="supervisor"}': "1000x80",
    'arcpipe_process_open_fds{process="ingest 1"}': "500x80",
    'arcpipe_process_max_fds{process="ingest 1"}': "1000x80",
    'arcpipe_wal_segment_bytes{worker="1"}': "500x80",
    "arcpipe_wal_segment_limit_bytes": "1000x80",
    "arcpipe_upload_rescued_values_total": "0x80",
    'arcpipe_restarts_total{process="ingest"}': "1x80",
    'arcpipe_write_requests_total{outcome="accepted",worker="1"}': "0+100x80",
    'arcpipe_http_requests_total{route="/write",status="204"}': "0+100x80",
    'arcpipe_http_requests_total{route="/write",status="400"}': "0+1x80",  # one in a hundred
    'arcpipe_http_requests_total{route="other",status="404"}': "0+100x80",
    'arcpipe_refused_requests_total{reason="not_found"}': "0+100x80",
    'arcpipe_refused_requests_total{reason="too_many_connections"}': "0x80",
    'arcpipe_issues{code="rescued_values",severity="info"}': "3x80",
    'arcpipe_issues{code="segment_near_limit",severity="info"}': "1x80",
    'arcpipe_issues{code="restarts",severity="info"}': "1x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="0.001"}': "0+10x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="5.0"}': "0+10x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="+Inf"}': "0+10x80",
}
Series = dict[str, str]
NOBODY = {
    'arcpipe_write_requests_total{outcome="accepted",worker="1"}': "100x80",
    'arcpipe_http_requests_total{route="/write",status="204"}': "100x80",
    'arcpipe_http_requests_total{route="/write",status="400"}': "0x80",
}
UP = 'up{job="arcpipe"}'
WORKER_UP = 'arcpipe_process_up{process="ingest 1"}'
RESCUED = "arcpipe_upload_rescued_values_total"
NOT_HTTP = 'arcpipe_http_requests_total{route="other",status="400"}'
NO_TOKEN = 'arcpipe_http_requests_total{route="/api/v1/status",status="401"}'
STARTS = 'arcpipe_process_start_time_seconds{process="supervisor"}'


def issue(code: str, values: str = "1x80", severity: str = "warning") -> Series:
    return {f'arcpipe_issues{{code="{code}",severity="{severity}"}}': values}


def at(*samples: float | None) -> str:
    """The last samples of a series, None for a scrape that failed; those before them are missing."""
    return " ".join("_" if value is None else str(value) for value in ([None] * SAMPLES + list(samples))[-SAMPLES:])


def every(count: int, *values: float | None) -> str:
    """Return a series that repeats some values, each for `count` samples."""
    return at(*[values[number // count % len(values)] for number in range(SAMPLES)])


def young(samples: int) -> Series:
    """Return the series of an instance that Prometheus has seen for a few samples only."""
    return {name: f"_x{SAMPLES - samples - 1} {values}" for name, values in WELL.items()}


# Each alert, and whatever makes it fire and no other. The names of cases are free.
FIRES: list[tuple[str, Series, set[str]]] = [
    ("nobody answers", {UP: "0x80"}, {"ArcpipeDown"}),
    ("the job is lost", {UP: "_x80", 'up{job="other"}': "1x80"}, {"ArcpipeAbsent"}),
    # A supervisor that dies a second after each start. Prometheus may meet some of its lives, all, or none of them.
    (
        "crash loop, met by each second scrape",
        {
            UP: every(1, 1, 0),
            STARTS: at(*[1000 + number if number % 2 else None for number in range(SAMPLES)]),
            "arcpipe_uptime_seconds": every(1, 1.5, None),
        },
        {"ArcpipeCrashLoop"},
    ),
    (
        "crash loop, and the service manager keeps the sockets: each scrape is answered",
        {STARTS: "0+15x80", "arcpipe_uptime_seconds": "1+0.01x80"},
        {"ArcpipeCrashLoop"},
    ),
    (
        "crash loop of a version without start times",
        {STARTS: "_x80", "arcpipe_uptime_seconds": every(4, 9, 1)},
        {"ArcpipeCrashLoop"},
    ),
    (
        "crash loop, hardly ever met",
        {UP: every(1, 0, 0, 1, 0)} | {STARTS: "_x80"},
        {"ArcpipeCrashLoop"},
    ),
    ("the supervisor hangs", issue("supervisor_down", severity="critical"), {"ArcpipeSupervisorDown"}),
    ("a worker is down", issue("worker_down", severity="critical"), {"ArcpipeWorkerDown"}),
    ("the uploader is down", issue("uploader_down", severity="critical"), {"ArcpipeUploaderDown"}),
    ("a process cannot be kept alive", issue("failed_starts"), {"ArcpipeFailedStarts"}),
    ("a worker dies every 30 s", {'arcpipe_restarts_total{process="ingest"}': "0+0.5x80"}, {"ArcpipeRestarts"}),
    (
        "a worker is silent now and then",
        {WORKER_UP: every(1, 1, 0)},
        {"ArcpipeProcessFlapping"},
    ),
    ("writes are refused", issue("writes_refused", severity="critical"), {"ArcpipeWritesRefused"}),
    (
        "every client has a token that has expired",
        NOBODY | {'arcpipe_http_requests_total{route="/api/v2/write",status="401"}': "0+10x80"},
        {"ArcpipeNobodyIsServed", "ArcpipeClientsRefused"},
    ),
    (
        "every sender of OTLP has a token that has expired",
        NOBODY | {'arcpipe_http_requests_total{route="/v1/traces",status="401"}': "0+10x80"},
        {"ArcpipeNobodyIsServed", "ArcpipeClientsRefused"},
    ),
    (
        "a few slow clients, all of them refused",
        NOBODY | {'arcpipe_http_requests_total{route="/write/v2/msgpack",status="403"}': "0+0.25x80"},
        {"ArcpipeNobodyIsServed", "ArcpipeClientsRefused"},
    ),
    (
        "no connection is taken",
        NOBODY | {'arcpipe_refused_requests_total{reason="too_many_connections"}': "0+10x80"},
        {"ArcpipeNobodyIsServed", "ArcpipeClientsRefused"},
    ),
    (
        "one client of five is refused",
        {'arcpipe_http_requests_total{route="/write",status="429"}': "0+25x80"},
        {"ArcpipeClientsRefused"},
    ),
    ("slow", {'arcpipe_ack_latency_seconds_bucket{worker="1",le="0.001"}': "0x80"}, {"ArcpipeSlowAcknowledgement"}),
    ("descriptors run out", {'arcpipe_process_open_fds{process="ingest 1"}': "950x80"}, {"ArcpipeOpenFiles"}),
    ("certificate ends", issue("certificate_expires"), {"ArcpipeCertificateExpires"}),
    ("certificate is over", issue("certificate_expires", severity="critical"), {"ArcpipeCertificateExpired"}),
    ("authority ends", issue("client_ca_expires"), {"ArcpipeClientCaExpires"}),
    ("token ends", issue("token_expires"), {"ArcpipeTokenExpires"}),
    ("the WAL cannot be written", issue("write_failures", severity="critical"), {"ArcpipeWriteFailures"}),
    ("wal.dir is gone", issue("wal_unlisted", severity="critical"), {"ArcpipeWalUnlisted"}),
    ("wal.dir is another one", issue("wal_replaced", severity="critical"), {"ArcpipeWalReplaced"}),
    ("the lock is lost", issue("lock_lost", severity="critical"), {"ArcpipeLockLost"}),
    ("the disk fills", issue("disk_usage"), {"ArcpipeDiskUsage"}),
    ("a segment stays full", {'arcpipe_wal_segment_bytes{worker="1"}': "950x80"}, {"ArcpipeSegmentNearLimit"}),
    ("a segment is not sealed", issue("segment_too_old"), {"ArcpipeSegmentTooOld"}),
    ("uploads are behind", issue("uploads_behind"), {"ArcpipeUploadsBehind"}),
    ("the store refuses credentials", issue("credentials_refused"), {"ArcpipeCredentialsRefused"}),
    ("uploads stop", issue("uploads_stopped", severity="critical"), {"ArcpipeUploadsStopped"}),
    ("segments cannot be read", issue("unreadable_segments", severity="critical"), {"ArcpipeUnreadableSegments"}),
    ("quarantine", issue("quarantine"), {"ArcpipeQuarantine"}),
    ("segments are lost", issue("lost_segments", severity="critical"), {"ArcpipeLostSegments"}),
    ("compaction wrote other rows", issue("compaction_mismatch", severity="critical"), {"ArcpipeCompactionMismatch"}),
    ("compaction cannot go on", issue("compaction_stopped"), {"ArcpipeCompactionStopped"}),
    ("idempotency keys cannot be read", issue("keys_unreadable"), {"ArcpipeKeysUnreadable"}),
    ("idempotency keys are forgotten early", issue("keys_cut", severity="info"), {"ArcpipeKeysCut"}),
    ("retention waits", issue("retention_waits", severity="info"), {"ArcpipeRetentionWaits"}),
    ("compaction is down", issue("compaction_down"), {"ArcpipeCompactionDown"}),
    ("compaction fails", issue("compaction_failing"), {"ArcpipeCompactionFailing"}),
    ("a reload was refused", issue("reload_refused"), {"ArcpipeReloadRefused"}),
    (
        "compaction runs out of memory",
        {'arcpipe_restarts_total{process="compaction"}': "0x40 1x9 2x9 3x20"},
        {"ArcpipeRestarts"},
    ),
    ("tables are stopped", issue("tables_stopped", severity="critical"), {"ArcpipeTablesStopped"}),
    ("a table refuses", issue("table_refused", severity="critical"), {"ArcpipeTableRefused"}),
    ("files are missing", issue("table_files_missing", severity="critical"), {"ArcpipeTableFilesMissing"}),
    ("tables hold back", issue("tables_held_back", severity="critical"), {"ArcpipeTablesHeldBack"}),
    ("tables are unreachable", issue("tables_unreachable"), {"ArcpipeTablesUnreachable"}),
    ("the committer is down", issue("committer_down"), {"ArcpipeCommitterDown"}),
    ("tables are behind", issue("tables_behind"), {"ArcpipeTablesBehind"}),
    ("the interval is short", issue("commit_interval_short"), {"ArcpipeCommitIntervalShort"}),
    ("records are lost", issue("lost_records", severity="critical"), {"ArcpipeLostRecords"}),
    ("findings cannot be read", issue("findings_unreadable"), {"ArcpipeFindingsUnreadable"}),
    ("damaged manifests", issue("damaged_manifests", severity="critical"), {"ArcpipeDamagedManifests"}),
    ("damage", issue("damaged_entries", severity="critical"), {"ArcpipeDamagedEntries"}),
    # What a restart finds is there at the first scrape after it, and no counter grows any more.
    (
        "damage is found right after a restart",
        {
            "arcpipe_uptime_seconds": at(*range(1000, 2080, 15), *range(1, 136, 15)),
            STARTS: at(*[1000] * 72, *[2080] * 9),
            **issue("damaged_entries", at(*[2] * 9), "critical"),
        },
        {"ArcpipeDamagedEntries"},
    ),
    ("dead letters", issue("dead_letters"), {"ArcpipeDeadLetters"}),
    ("the first scrape of all shows dead letters", young(1) | issue("dead_letters", at(1)), {"ArcpipeDeadLetters"}),
    ("rescued values", {RESCUED: "0x79 2"}, {"ArcpipeRescuedValues"}),
    (
        "the first scrape shows rescued values",
        young(1) | {RESCUED: at(2)},
        {"ArcpipeRescuedValues"},
    ),
    ("a newer server has a new issue", issue("out_of_luck"), {"ArcpipeIssue"}),
]
QUIET: list[tuple[str, Series]] = [
    ("all is well", {}),
    ("it was seen for the first time", young(1)),
    ("it was seen for the first time a minute ago", young(4)),
    (
        "one restart, of fifteen seconds",
        {
            UP: "1x70 0 1x8",
            STARTS: at(*[1000] * 71, None, *[2080] * 9),
            "arcpipe_uptime_seconds": at(*range(1000, 2065, 15), None, *range(1, 136, 15)),
        },
    ),
    ("it was down for ten minutes, and is back", {UP: at(*[1] * 30, *[0] * 40, *[1] * 11)}),
    ("two restarts by hand", {STARTS: at(*[1000] * 50, *[2000] * 20, *[3000] * 11)}),
    ("a worker has died once and was replaced", {'arcpipe_restarts_total{process="ingest"}': "1x40 2x39"}),
    ("a worker was silent once", {WORKER_UP: "1x40 0 1x38"}),
    ("a worker was silent for a moment", issue("worker_down", at(1), "critical")),
    (
        "somebody knocks at an idle server",
        NOBODY | {NOT_HTTP: "0x77 1 2 3"},
    ),
    ("nobody writes", NOBODY),
    ("a scanner tries paths", NOBODY | {'arcpipe_refused_requests_total{reason="not_found"}': "0+500x80"}),
    (
        "a dashboard has no token",
        NOBODY | {NO_TOKEN: "0+15x80"},
    ),
    ("a segment fills and is sealed", {'arcpipe_wal_segment_bytes{worker="1"}': every(4, 100, 500, 950)}),
    # Of before: it counted up to 300 s although flush.max_age_seconds lets records wait for longer. Now health decides.
    ("records wait as long as they may", {"arcpipe_oldest_unshipped_seconds": "850x80"}),
]


def test_refusals_on_every_path_that_takes_records_are_counted() -> None:
    [rule] = [rule for rule in all_rules() if rule.get("record") == "job_instance:arcpipe_refused:increase10m"]
    [counted] = re.findall(r'route=~"([^"]+)"', rule["expr"])
    paths = yaml.safe_load((OPS.parent / "docs/openapi.yaml").read_text())["paths"]
    posted = {path for path, item in paths.items() if "post" in item} - {"/query"}
    assert len(posted) > 8
    assert {path for path in posted if not re.fullmatch(counted, path)} == set()


def scenario(name: str, series: Series, alerts: set[str]) -> dict[str, Any]:
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "name": name,
        "interval": "15s",
        "input_series": [{"series": _labelled(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": "20m", "exp_samples": firing}],
    }


def _labelled(name: str) -> str:
    """With the labels that Prometheus adds to what it scrapes."""
    labels = 'instance="a"' + (',job="arcpipe"' if "job=" not in name else "")
    return re.sub(r"(?=})|$", f",{labels}" if "{" in name else f"{{{labels}}}", name, count=1)


@pytest.mark.slow
@needs_promtool
def test_each_alert_fires_while_its_condition_holds(tmp_path: Path) -> None:
    """Each alert fires while its condition holds and none while all is well."""
    assert {alert for _, _, alerts in FIRES for alert in alerts} == {rule["alert"] for rule in rules()}
    tests = [scenario(name, WELL | series, alerts) for name, series, alerts in FIRES]
    tests += [scenario(name, WELL | series, set()) for name, series in QUIET]
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
