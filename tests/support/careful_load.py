"""A load that knows of each request whether it was acknowledged, and counts everything else as a failure."""

from __future__ import annotations

import functools
import http.client
import time
from urllib.parse import urlsplit

from tests.support.http import pack
from tests.support.waiting import wait_until
from tests.support.writers import Writers


class CarefulLoad(Writers):
    """Writers that never try a request again: each request is acknowledged, or it is a failure that is remembered.

    Half of them keep their connections and honour `Connection: close`, as every HTTP client does; half of them make a
    new connection for each request.
    """

    def __init__(self, url: str, writers: int = 4) -> None:
        super().__init__(functools.partial(self._run, number % 2 == 0) for number in range(writers))
        self._address = urlsplit(url).netloc
        self.acknowledged: list[int] = []
        self.failures: list[str] = []
        self.longest_seconds = 0.0

    def wait_for(self, more: int) -> None:
        """Wait until `more` further requests have been acknowledged, or until the first failure."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: self.failures or len(self.acknowledged) >= enough, f"{more} requests")

    def wait_for_acknowledged(self, more: int) -> None:
        """Wait for as many whatever fails meanwhile."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, f"{more} requests")

    def _run(self, keep: bool) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._stop.is_set():
            number = self._next_number()
            body = pack({"m": "counted", "columns": {"n": [number]}})
            started = time.monotonic()
            try:
                # http.client connects anew after an answer with `Connection: close`.
                connection.request("POST", "/write/v2/msgpack", body, {} if keep else {"Connection": "close"})
                status = connection.getresponse()
                status.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{'kept' if keep else 'new'} connection: {error!r}")
                connection.close()
                continue
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)
            if status.status == 202:
                self.acknowledged.append(number)
            else:
                self.failures.append(f"status {status.status}")
        connection.close()
