"""Latencies in logarithmic buckets: bounded memory, 1% resolution from 1 µs to 1000 s, and buckets add up.

The idea is HdrHistogram's, with evenly spaced exponents, so that numpy puts a million latencies in place in one call.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_LOWEST_SECONDS: Final = 1e-6
_DECADES: Final = 9
_PER_DECADE: Final = 232  # 10 ** (1 / 232) is 1.01
_EDGES: Final = _LOWEST_SECONDS * 10 ** (np.arange(_DECADES * _PER_DECADE + 1) / _PER_DECADE)


class Histogram:
    """Counts of latencies. `maximum_seconds` is exact; percentiles are exact to 1%, rounded up."""

    def __init__(self, buckets: dict[int, int] | None = None, maximum_seconds: float = 0.0) -> None:
        """`buckets` and `maximum_seconds` are those of another histogram, perhaps of another process."""
        self._counts = np.zeros(len(_EDGES) + 1, np.int64)
        for bucket, count in (buckets or {}).items():
            self._counts[bucket] = count
        self.maximum_seconds = maximum_seconds

    def add(self, seconds: npt.NDArray[np.float64]) -> None:
        """Counts each element."""
        if len(seconds):
            self._counts += np.bincount(np.searchsorted(_EDGES, seconds), minlength=len(self._counts))
            self.maximum_seconds = max(self.maximum_seconds, float(seconds.max()))

    def merge(self, other: Histogram) -> None:
        self._counts += other._counts
        self.maximum_seconds = max(self.maximum_seconds, other.maximum_seconds)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of all latencies did not exceed; 0 if there are none."""
        total = self.count
        if not total:
            return 0.0
        wanted = max(1, int(np.ceil(total * percent / 100)))
        bucket = int(np.searchsorted(np.cumsum(self._counts), wanted))
        return min(float(_EDGES[min(bucket, len(_EDGES) - 1)]), self.maximum_seconds)

    def buckets(self) -> dict[int, int]:
        """Bucket number to count, where there is one: bucket n ends at 1 µs * 10 ** (n / 232)."""
        return {int(bucket): int(self._counts[bucket]) for bucket in np.flatnonzero(self._counts)}
