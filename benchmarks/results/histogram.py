"""Latencies in an HdrHistogram: bounded memory, resolution 0.1% from 1 µs to an hour, and histograms add up.

The encoding is HdrHistogram's own V2 format (compressed, base64). Its plotters and its libraries in every language read
it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

_LOWEST_US: Final = 1
_HIGHEST_US: Final = 3_600_000_000
_DIGITS: Final = 3


class Histogram:
    """Counts of latencies in whole µs. Percentiles are exact to 0.1%, rounded up; so is the maximum."""

    def __init__(self, encoded: str = "") -> None:
        """Create a histogram.

        Args:
            encoded: Another histogram to begin with; "" begins with none.

        Raises:
            ValueError: `encoded` is not a histogram of this module.
        """
        self._counts = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)
        if encoded:
            self._counts.decode_and_add(encoded)

    def add(self, seconds: npt.NDArray[np.float64]) -> None:
        """Count each element. The library counts one value at a time, so equal values go to it together."""
        microseconds = np.clip(np.rint(seconds * 1e6), _LOWEST_US, _HIGHEST_US).astype(np.int64)
        values, counts = np.unique(microseconds, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._counts.record_value(value, count)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self._counts.add(other._counts)

    @property
    def count(self) -> int:
        """Number of latencies."""
        return int(self._counts.get_total_count())

    @property
    def maximum_seconds(self) -> float:
        """Longest latency; 0 if there are none."""
        return float(self._counts.get_max_value()) / 1e6 if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the seconds that `percent` of all latencies did not exceed; 0 if there are no latencies."""
        if not self.count:
            return 0.0
        value = self._counts.get_percentile_to_value_dict([percent])[percent]
        return min(float(value) / 1e6, self.maximum_seconds)

    def encoded(self) -> str:
        """Return the histogram as HdrHistogram V2, compressed, base64; values are µs."""
        return str(self._counts.encode().decode("ascii"))
