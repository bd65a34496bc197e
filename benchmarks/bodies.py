"""Request bodies: telemetry as agents send it, made before the load starts.

A body's values are fixed, its times are not: `at` gives the same records with times of now, so that a long run fills
the hours that it runs through and no others. Values come from a seeded generator, so every run sends the same.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

import msgpack
import numpy as np

_HOSTS: Final = 100
_REGIONS: Final = ("us-east", "us-west", "eu-west-1", "eu-north", "ap-south")
_RECORD_INTERVAL_US: Final = 1000  # a body of 1000 records spans a second

# MessagePack's uint64, what every encoder makes of a time in µs: a marker byte and the number, big-endian.
_UINT64: Final = np.dtype([("marker", "u1"), ("value", ">u8")])


class Body(Protocol):
    """One body of a load."""

    path: str
    content_type: str
    records: int

    def at(self, now_us: int) -> bytes:
        """The body with its last record at `now_us` (µs since the epoch)."""


class ColumnarBody:
    """Columnar MessagePack: `time` in µs, two string tags, three floats of full precision.

    1000 records are 53 KiB. Strings are of different lengths. The floats are uniform random, which nothing compresses:
    the hard case for Parquet.
    """

    path = "/write/v2/msgpack"
    content_type = "application/msgpack"

    def __init__(self, records: int, source: random.Random) -> None:
        self.records = records
        columns: dict[str, list[str] | list[float]] = {
            "host": [f"server-{source.randrange(_HOSTS)}" for _ in range(records)],
            "region": [source.choice(_REGIONS) for _ in range(records)],
            "usage_user": [source.random() * 100 for _ in range(records)],
            "usage_system": [source.random() * 100 for _ in range(records)],
            "usage_idle": [source.random() * 100 for _ in range(records)],
        }
        packer = msgpack.Packer()
        self._before = b"".join(
            (
                packer.pack_map_header(2),
                packer.pack("m"),
                packer.pack("cpu"),
                packer.pack("columns"),
                packer.pack_map_header(1 + len(columns)),
                packer.pack("time"),
                packer.pack_array_header(records),
            )
        )
        self._times = np.empty(records, _UINT64)
        self._times["marker"] = 0xCF
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US
        self._after = b"".join(packer.pack(name) + packer.pack(values) for name, values in columns.items())

    def at(self, now_us: int) -> bytes:
        self._times["value"] = now_us - self._ages_us
        return b"".join((self._before, self._times.data, self._after))


def make_bodies(format: str, records: int, count: int, seed: int) -> list[Body]:
    """`count` different bodies of `records` records each.

    Raises:
        KeyError: there is no such format.
    """
    source = random.Random(seed)
    return [FORMATS[format](records, source) for _ in range(count)]


FORMATS: Final[dict[str, type[ColumnarBody]]] = {"columnar": ColumnarBody}
