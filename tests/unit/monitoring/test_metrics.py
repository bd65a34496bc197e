"""Metrics: labels that clients choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from arcpipe.config.settings import WAL, Settings
from arcpipe.counters import Counters, Worker, pack_usage
from arcpipe.monitoring import metrics, snapshot
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
