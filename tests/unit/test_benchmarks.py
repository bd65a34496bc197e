"""The pure parts of the benchmark harness."""

from __future__ import annotations

import numpy as np
from hdrh.histogram import HdrHistogram

from benchmarks.histogram import Histogram


def test_percentiles_of_a_histogram_are_those_of_its_values_to_a_thousandth() -> None:
    seconds = np.random.default_rng(1).lognormal(-6, 1, 100_000)
    histogram = Histogram()
    histogram.add(seconds[:1000])
    histogram.add(seconds[1000:])
    assert histogram.count == len(seconds)
    for percent in (50, 90, 99, 99.9):
        exact = np.percentile(seconds, percent, method="inverted_cdf")
        assert abs(histogram.percentile(percent) - exact) <= exact / 1000 + 1e-6
    assert abs(histogram.maximum_seconds - seconds.max()) <= seconds.max() / 1000 + 1e-6


def test_histograms_of_several_processes_add_up() -> None:
    whole, halves = Histogram(), Histogram()
    seconds = np.random.default_rng(2).uniform(1e-4, 2, 10_000)
    whole.add(seconds)
    for half in (seconds[:5000], seconds[5000:]):
        part = Histogram()
        part.add(half)
        halves.merge(Histogram(part.encoded()))
    assert [halves.percentile(p) for p in (1, 50, 99.9)] == [whole.percentile(p) for p in (1, 50, 99.9)]
    assert halves.count == whole.count


def test_an_encoded_histogram_is_read_by_hdrhistogram_in_microseconds() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.0, 0.001, 0.002, 7200.0]))
    decoded = HdrHistogram.decode(histogram.encoded())
    assert decoded.get_total_count() == 4
    assert decoded.values_are_equivalent(decoded.get_value_at_percentile(75), 2000)


def test_an_empty_histogram_has_zeros() -> None:
    histogram = Histogram(Histogram().encoded())
    assert (histogram.count, histogram.percentile(99), histogram.maximum_seconds) == (0, 0.0, 0.0)
