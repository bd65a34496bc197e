"""Results of runs that nobody has made, with all figures that a run has."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.results.histogram import Histogram
from benchmarks.results.model import Latency, LoadOptions, ProcessResult, Run

LOAD = LoadOptions(
    format="columnar",
    records_per_body=1000,
    connections=32,
    warmup_seconds=1,
    seconds=5,
    records_per_second=0,
    load_processes=1,
)


def run(records_per_second: float = 1e6, number: int = 1, **changes: Any) -> Run:
    histogram = Histogram()
    histogram.add(np.random.default_rng(number).lognormal(-6, 1, 5000))
    latency = Latency(0.001, 0.002, 0.003, 0.004, 0.005, histogram.encoded())
    values: dict[str, Any] = {
        "case": "fdatasync",
        "round": number,
        "load": LOAD,
        "started_at": "2026-11-22T00:00:00+00:00",
        "workers": 2,
        "seconds": 5,
        "requests_per_second": records_per_second / 1000,
        "records_per_second": records_per_second,
        "body_bytes_per_second": records_per_second * 55,
        "latency": latency,
        "acknowledged_records": 5_000_000,
        "parquet_records": 5_000_000,
        "drain_seconds": 1,
        "to_parquet": None,
        "processes": [ProcessResult("ingest 1", 50_000_000, 0.5), ProcessResult("uploader", 400_000_000, 0.3)],
        "load_cores": 0.2,
        "other_cores": 0.0,
        "stolen_cores": 0.0,
        "complaints": [],
        "samples": [],
    }
    return Run(**{**values, **changes})
