"""A load whose every record is known, and the proof that each is in the lake exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.http import Client, pack, request_bytes
from tests.support.lake import lake_files, shared_database
from tests.support.server import Server
from tests.support.waiting import wait_until
from tests.support.writers import Writers


class Load(Writers):
    """Connections that write as fast as they are answered: each record once, under an id of its own.

    Remembers what was sent and what was acknowledged; a request whose answer did not come is not sent again. Goes on
    over restarts of the server (`server.url` is looked up for each connection). `pause_seconds` between the requests of
    a connection make it a load that the machine does not notice.
    """

    RECORDS = 50  # per request
    DATABASES = ("alpha", "beta")
    HOUR = 3600
    TAKEN: tuple[int, ...] = (202,)
    """Statuses of what is acknowledged."""
    FOUND = "SELECT id, value, host FROM read_parquet(?, union_by_name = true, hive_partitioning = false)"
    """Finds id, value and host of all rows."""

    def __init__(self, server: Server, connections: int = 4, pause_seconds: float = 0.0) -> None:
        super().__init__([self._run] * connections)
        self._server = server
        self._pause_seconds = pause_seconds
        self._sent: list[int] = []
        self._acknowledged: list[int] = []
        self._errors: list[BaseException] = []

    def stop(self) -> None:
        super().stop()
        assert not self._errors, self._errors

    @property
    def acknowledged_requests(self) -> int:
        return len(self._acknowledged)

    def wait_for_requests(self, more: int) -> None:
        """Wait until `more` further requests have been acknowledged."""
        enough = self.acknowledged_requests + more
        wait_until(lambda: self._errors or self.acknowledged_requests >= enough, f"{more} acknowledged requests")

    def sent(self) -> npt.NDArray[np.int64]:
        return self._ids(self._sent)

    def acknowledged(self) -> npt.NDArray[np.int64]:
        return self._ids(self._acknowledged)

    def assert_exactly_once(self, lake: Path) -> None:
        """Assert acknowledged ⊆ found ⊆ sent, no id twice, every value as it was sent, no dead letters."""
        assert not list(lake.glob("_dead_letter/**/*.*"))
        files = [str(file) for file in lake_files(lake)]
        with shared_database().cursor() as connection:
            found = connection.execute(self.FOUND, [files]).fetchnumpy()
        ids: npt.NDArray[np.int64] = np.asarray(found["id"])
        unique, counts = np.unique(ids, return_counts=True)
        acknowledged, sent = self.acknowledged(), self.sent()
        problems = {
            "lost": np.setdiff1d(acknowledged, unique),
            "twice": unique[counts > 1],
            "never sent": np.setdiff1d(unique, sent),
        }
        shown = {
            name: f"{len(bad)} ids: {_ranges(bad)}, requests {sorted(set((bad // self.RECORDS).tolist()))[:20]}"
            for name, bad in problems.items()
            if len(bad)
        }
        assert not shown, f"of {len(acknowledged)} acknowledged ids in {len(files)} files: {shown}"
        assert np.array_equal(np.asarray(found["value"]), ids / 4)
        assert set(found["host"]) <= {f"host-{ids % self.RECORDS % 7}" for ids in range(self.RECORDS)}

    def _ids(self, requests: list[int]) -> npt.NDArray[np.int64]:
        first = np.array(requests, dtype=np.int64)[:, np.newaxis] * self.RECORDS
        return np.sort((first + np.arange(self.RECORDS, dtype=np.int64)).ravel())

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if url := self._server.url:
                    try:
                        with Client(url) as client:
                            while not self._stop.is_set():
                                self._exchange(client)
                                self._stop.wait(self._pause_seconds)
                    except OSError:
                        pass
                self._stop.wait(0.01)  # the server is dead, or is just being started
        except BaseException as error:
            self._errors.append(error)

    def _exchange(self, client: Client) -> None:
        number = self._next_number()
        request = self._request(number)
        self._sent.append(number)
        client.send(request)
        response = client.receive()
        # Refusals are answers too (a full backlog, a log that cannot be written); any other one is a bug.
        assert response.status in (*self.TAKEN, 503, 507), response
        if response.status in self.TAKEN:
            self._acknowledged.append(number)

    def _request(self, number: int) -> bytes:
        database = self.DATABASES[number % len(self.DATABASES)]
        return request_bytes("POST", "/write/v2/msgpack", pack(self._body(number)), {"x-arc-database": database})

    def _body(self, number: int) -> Any:
        """Make a body of about 20 kB: the four shapes in turn, two measurements, two hours."""
        first = number * self.RECORDS
        ids = range(first, first + self.RECORDS)
        start = 1_767_225_600 + number % 2 * self.HOUR
        measurement = f"m{number % 3 % 2}"
        hosts = [f"host-{index % 7}" for index in range(self.RECORDS)]
        columns: dict[str, list[Any]] = {
            "time": [start + index for index in range(self.RECORDS)],
            "id": list(ids),
            "value": [identity / 4 for identity in ids],
            "host": hosts,
            "pad": ["x" * 380] * self.RECORDS,
        }
        match number % 4:
            case 0:
                return {"m": measurement, "columns": columns}
            case 1:
                del columns["time"]
                return [{"m": measurement, "columns": columns}]
            case 2:
                return {"batch": [self._row(columns, measurement, index) for index in range(self.RECORDS)]}
            case _:
                half = self.RECORDS // 2
                front = {name: values[:half] for name, values in columns.items()}
                rows = [self._row(columns, measurement, index) for index in range(half, self.RECORDS)]
                return [{"m": measurement, "columns": front}, *rows]

    def _row(self, columns: Mapping[str, list[Any]], measurement: str, index: int) -> dict[str, Any]:
        return {
            "m": measurement,
            "t": columns["time"][index],
            "h": columns["host"][index],
            "fields": {name: columns[name][index] for name in ("id", "value", "pad")},
        }


def _ranges(numbers: Iterable[int]) -> str:
    """Write sorted numbers as `3-5, 9`, the first few."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = int(number)
        else:
            ranges.append([int(number), int(number)])
    shown = ", ".join(f"{low}-{high}" if low != high else str(low) for low, high in ranges[:10])
    return shown + (" …" if len(ranges) > 10 else "")
