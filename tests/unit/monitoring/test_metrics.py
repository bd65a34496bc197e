"""Metrics: labels that clients choose, and the processes that are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from arcpipe.clock import steady_us
from arcpipe.config.settings import WAL, Compaction, Settings
from arcpipe.config.settings_tables import Tables
from arcpipe.counters import Committer, Counters, Worker, pack_usage
from arcpipe.counters import Compaction as Compacted
from arcpipe.monitoring import health, metrics, snapshot
from arcpipe.wal.directory import WALDirectory


@pytest.mark.parametrize("name", ["Home Assistant", 'a"b\\c', "日本語", "_other", "ü" * 64, "{}", "\u2028"])
def test_any_database_is_a_label_and_a_series_comes_once(tmp_path: Path, name: str) -> None:
    """A database may be called as the label of all that are not counted by name."""
    WALDirectory(tmp_path).make()
    counters = Counters(1)
    words = pack_usage({name: [1, 2, 3], "": [1, 20, 30]})
    for offset, word in enumerate(words, Worker.DATABASES):
        counters.worker(1)[offset] = word
    text, _ = metrics.render(snapshot.take(Settings(wal=WAL(dir=str(tmp_path))), counters, []))
    samples = [one for family in text_string_to_metric_families(text.decode()) for one in family.samples]
    records = [(one.labels["database"], one.value) for one in samples if one.name == "arcpipe_records_total"]
    assert records == ([("_other", 22)] if name == "_other" else [("_other", 20), (name, 2)])


def test_deaths_of_compaction_and_committer_are_counted_as_those_of_others(tmp_path: Path) -> None:
    """One that the kernel kills for its memory again and again has a heartbeat at most scrapes."""
    WALDirectory(tmp_path).make()
    counters = Counters(1)
    counters.compaction[Compacted.RESTARTS], counters.compaction[Compacted.FAILED_STARTS] = 3, 2
    counters.compaction[Compacted.PID], counters.compaction[Compacted.HEARTBEAT_US] = 1, steady_us()
    counters.committer[Committer.RESTARTS] = 4
    wal = WAL(dir=str(tmp_path))
    wanted = Settings(wal=wal, compaction=Compaction(enabled=True), tables=Tables(format="iceberg"))
    taken = snapshot.take(wanted, counters, [])
    found = samples(taken)
    assert found["arcpipe_restarts_total", "compaction"] == 3
    assert found["arcpipe_restarts_total", "committer"] == 4
    assert found["arcpipe_process_failed_starts", "compaction"] == 2
    assert found["arcpipe_process_up", "compaction"] == 1
    assert found["arcpipe_process_up", "committer"] == 0
    [issue] = [issue for issue in health.judge(taken) if issue.code == "restarts"]
    assert issue.message.endswith("0 × a worker, 0 × the uploader, 3 × compaction, 4 × committer")
    without = samples(snapshot.take(Settings(wal=wal), counters, []))
    for name in ("arcpipe_restarts_total", "arcpipe_process_up", "arcpipe_process_failed_starts"):
        assert (name, "compaction") not in without  # the settings want none
        assert (name, "committer") not in without


def samples(taken: snapshot.Snapshot) -> dict[tuple[str, ...], float]:
    text, _ = metrics.render(taken)
    families = text_string_to_metric_families(text.decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
