"""Memory is given back once after each time of work, on the thread that has freed it."""

from __future__ import annotations

import asyncio
import threading

from arcpipe.ingest.http.background import Background
from arcpipe.ingest.resting import IDLE_SECONDS, Rest, give_back


class Client:
    address = "a"
    is_gone = False


async def work(encoding: Background) -> None:
    done = asyncio.Event()
    encoding.add(Client(), 10, lambda _: None, lambda _: done.set())
    await done.wait()


def test_memory_is_given_back_after_work_and_not_meanwhile() -> None:
    async def run() -> None:
        encoding = Background("encoding", lambda: True, lambda: None, interrupts=True)
        given = asyncio.Event()
        threads: list[str] = []
        loop = asyncio.get_running_loop()

        def note() -> None:
            give_back()
            threads.append(threading.current_thread().name)
            loop.call_soon_threadsafe(given.set)

        rest = Rest(encoding, note)
        rest.tick(0.0)
        rest.tick(100.0)  # it never worked
        for start in (200.0, 300.0):
            await work(encoding)
            rest.tick(start)
            rest.tick(start + IDLE_SECONDS - 0.1)
            before = len(threads)
            rest.tick(start + IDLE_SECONDS)
            await given.wait()
            given.clear()
            rest.tick(start + 50.0)
            assert len(threads) == before + 1
        assert all(name.startswith("encoding") for name in threads)
        assert len(threads) == 2

    asyncio.run(run())
