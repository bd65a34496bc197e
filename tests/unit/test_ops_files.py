"""Alert rules and dashboard: valid, complete, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcpipe import health, snapshot
from arcpipe.config import load
from arcpipe.counters import Counters, Uploader
from arcpipe.metrics import families
from arcpipe.wal.directory import WALDirectory

OPS = Path(__file__).parents[2] / "ops"
NAME = re.compile(r"\barcpipe_[a-z0-9_]+")
# What a rule has for itself, because no process can tell it of itself or it is a matter of the scraper's history.
ONLY_ALERTS = {"instance_down", "slow_acknowledgement"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found = json.loads((OPS / "grafana-dashboard.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def existing_names(tmp_path: Path) -> set[str]:
    """Of every sample that /metrics may have."""
    settings = load(None, {"ARCPIPE_WAL_DIR": str(tmp_path / "wal")})
    WALDirectory(settings.wal.dir).make()
    counters = Counters(1)
    counters.uploader[Uploader.LAST_UPLOAD_US] = 1
    names = set()
    for family in families(snapshot.take(settings, counters, [])):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "info": ["_info"]}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


def test_each_alert_is_about_metrics_that_exist(tmp_path: Path) -> None:
    names = existing_names(tmp_path)
    for rule in rules():
        used = set(NAME.findall(rule["expr"]))
        assert used <= names, rule["alert"]
        assert used or "up{" in rule["expr"]


def test_each_panel_is_about_metrics_that_exist_and_each_metric_has_a_panel(tmp_path: Path) -> None:
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
    source = Path(health.__file__).read_text()
    conditions = set(re.findall(r'add\(\s*"([a-z_]+)"', source))
    assert len(conditions) >= 10
    assert {rule["labels"]["code"] for rule in rules()} - ONLY_ALERTS == conditions
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here (Debian: prometheus)")
def test_promtool_finds_the_rules_valid() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(OPS / "alerts.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Metrics of an instance that is well, as Prometheus has them after twenty minutes of a sample each 15 s: name, then the
# series in promtool's notation (`0x80` is 481 zeros).
WELL = {
    'up{job="arcpipe"}': "1x80",
    'arcpipe_process_up{process="ingest 1"}': "1x80",
    'arcpipe_process_up{process="uploader"}': "1x80",
    'arcpipe_wal_write_failures_total{worker="1"}': "3x80",
    "arcpipe_backlog_bytes": "1000x80",
    "arcpipe_backlog_limit_bytes": "10000x80",
    "arcpipe_oldest_unshipped_seconds": "4x80",
    "arcpipe_wal_disk_free_bytes": "50000x80",
    "arcpipe_wal_disk_min_free_bytes": "1000x80",
    "arcpipe_wal_disk_size_bytes": "100000x80",
    'arcpipe_wal_segment_bytes{worker="1"}': "500x80",
    "arcpipe_wal_segment_limit_bytes": "1000x80",
    'arcpipe_wal_segment_age_seconds{worker="1"}': "4x80",
    "arcpipe_wal_segment_limit_seconds": "3600x80",
    "arcpipe_upload_dead_letters_total": "0x80",
    "arcpipe_upload_damaged_entries_total": "0x80",
    "arcpipe_upload_rescued_values_total": "0x80",
    'arcpipe_restarts_total{process="ingest"}': "1x80",
    'arcpipe_process_failed_starts{process="ingest 1"}': "2x80",
    "arcpipe_wal_listed": "1x80",
    "arcpipe_wal_unrecovered_segments": "0x80",
    "arcpipe_upload_unreadable_segments": "0x80",
    'arcpipe_wal_files{state="quarantine"}': "0x80",
    'arcpipe_wal_files{state="active"}': "2x80",
    "arcpipe_upload_lost_segments_total": "0x80",
    "arcpipe_upload_damaged_manifests": "0x80",
    "arcpipe_upload_stopped": "0x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="0.001"}': "0+10x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="5.0"}': "0+10x80",
    'arcpipe_ack_latency_seconds_bucket{worker="1",le="+Inf"}': "0+10x80",
}
ILL = {
    "ArcpipeDown": {'up{job="arcpipe"}': "0x80"},
    "ArcpipeWorkerDown": {'arcpipe_process_up{process="ingest 1"}': "0x80"},
    "ArcpipeUploaderDown": {'arcpipe_process_up{process="uploader"}': "0x80"},
    "ArcpipeWriteFailures": {'arcpipe_wal_write_failures_total{worker="1"}': "0+1x80"},
    "ArcpipeWritesRefused": {"arcpipe_wal_disk_min_free_bytes": "60000x80"},
    "ArcpipeSegmentNearLimit": {'arcpipe_wal_segment_bytes{worker="1"}': "950x80"},
    "ArcpipeSegmentTooOld": {'arcpipe_wal_segment_age_seconds{worker="1"}': "8000x80"},
    "ArcpipeDiskUsage": {"arcpipe_wal_disk_free_bytes": "15000x80"},
    "ArcpipeUploadsBehind": {"arcpipe_oldest_unshipped_seconds": "400x80"},
    "ArcpipeDeadLetters": {"arcpipe_upload_dead_letters_total": "0x79 2"},
    "ArcpipeDamagedEntries": {"arcpipe_upload_damaged_entries_total": "0x79 2"},
    "ArcpipeFailedStarts": {'arcpipe_process_failed_starts{process="ingest 1"}': "3x80"},
    "ArcpipeWalUnlisted": {"arcpipe_wal_listed": "0x80"},
    "ArcpipeUnreadableSegments": {"arcpipe_wal_unrecovered_segments": "1x80"},
    "ArcpipeQuarantine": {'arcpipe_wal_files{state="quarantine"}': "1x80"},
    "ArcpipeLostSegments": {"arcpipe_upload_lost_segments_total": "0x79 1"},
    "ArcpipeDamagedManifests": {"arcpipe_upload_damaged_manifests": "1x80"},
    "ArcpipeUploadsStopped": {"arcpipe_upload_stopped": "1x80"},
    "ArcpipeSupervisorDown": {'arcpipe_issues{code="supervisor_down"}': "1x80"},
    "ArcpipeLockLost": {'arcpipe_issues{code="lock_lost"}': "1x80"},
    "ArcpipeWalReplaced": {'arcpipe_issues{code="wal_replaced"}': "1x80"},
    "ArcpipeLostRecords": {'arcpipe_issues{code="lost_records"}': "1x80"},
    "ArcpipeFindingsUnreadable": {'arcpipe_issues{code="findings_unreadable"}': "1x80"},
    "ArcpipeRescuedValues": {"arcpipe_upload_rescued_values_total": "0x79 2"},
    "ArcpipeRestarts": {'arcpipe_restarts_total{process="ingest"}': "0+1x80"},
    "ArcpipeSlowAcknowledgement": {'arcpipe_ack_latency_seconds_bucket{worker="1",le="0.001"}': "0x80"},
}


def scenario(series: dict[str, str], alerts: list[str]) -> dict[str, Any]:
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "15s",
        "input_series": [
            {"series": re.sub(r"(?=})|$", ',instance="a"' if "{" in name else '{instance="a"}', name, count=1)}
            | {"values": values}
            for name, values in series.items()
        ],
        "promql_expr_test": [{"expr": expression, "eval_time": "20m", "exp_samples": firing}],
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here (Debian: prometheus)")
def test_each_alert_fires_while_its_condition_holds_and_none_while_all_is_well(tmp_path: Path) -> None:
    assert set(ILL) == {rule["alert"] for rule in rules()}
    tests = [scenario(WELL, []), *(scenario(WELL | changed, [alert]) for alert, changed in ILL.items())]
    file = tmp_path / "tests.yml"
    content = {"rule_files": [str(OPS / "alerts.yml")], "evaluation_interval": "15s", "tests": tests}
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
