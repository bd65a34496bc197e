"""How long a reader sees rows twice while an hour is merged: `python -m benchmarks.files.doubled`.

Makes the small files of an hour, and merges them with arcpipe's own compactor. Another process lists the hour again and
again. A look that finds merged files beside the former ones sees rows twice. One that finds too few files sees rows
missing, which must not be. The store is a directory. With `--s3` moto serves S3, and each request takes `--latency-ms`
longer:

    python -m benchmarks.files.doubled --files 60 720
    python -m benchmarks.files.doubled --files 60 --s3 --latency-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from arcpipe.storage import LakeStore, MemoryBlob, open_store
from benchmarks.files.compact import keys_and_files, merge

_COMMAND: Final = (sys.executable, "-m", "benchmarks.files.doubled")
_BUCKET: Final = "doubled"
_AHEAD_SECONDS: Final = 600  # of the compactor's clock, so that the files are old enough
_CHUNK: Final = 1 << 16


def main() -> None:
    """Merge, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, nargs="+", default=[60, 720])
    parser.add_argument("--rows", type=int, default=100_000, help="of the hour")
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of each request to S3")
    parser.add_argument("--merge", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.merge:
        print(json.dumps(asyncio.run(merge(_AHEAD_SECONDS))))
        return
    for files in options.files:
        asyncio.run(_measure(options, files))


async def _measure(options: argparse.Namespace, files: int) -> None:
    with tempfile.TemporaryDirectory(prefix="doubled-") as folder:
        wal = Path(folder) / "wal"
        (wal / "batches").mkdir(parents=True)
        variables = {"ARCPIPE_WAL_DIR": str(wal), "ARCPIPE_STORAGE_URL": f"file://{folder}/lake"}
        async with contextlib.AsyncExitStack() as stack:
            if options.s3:
                port = stack.enter_context(_s3_server(Path(folder)))
                port = await stack.enter_async_context(_slow(port, options.latency_ms / 1000))
                variables |= {
                    "ARCPIPE_STORAGE_URL": f"s3://{_BUCKET}/lake",
                    "ARCPIPE_STORAGE_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                    "ARCPIPE_STORAGE_S3_REGION": "us-east-1",
                    "AWS_ACCESS_KEY_ID": "a",
                    "AWS_SECRET_ACCESS_KEY": "b",
                }
            os.environ |= variables
            store = _store()
            stack.push_async_callback(store.close)
            await _measure_in(store, options.rows, files, Path(folder))


async def _measure_in(store: LakeStore, rows: int, files: int, folder: Path) -> None:
    inputs = set()
    for key, data in keys_and_files(folder, rows, files):
        await store.put(key, MemoryBlob(data))
        inputs.add(key)
    prefix = min(inputs).rpartition("/")[0] + "/"
    child = await asyncio.create_subprocess_exec(*_COMMAND, "--merge", stdout=asyncio.subprocess.PIPE)
    looks, doubled, missing = 0, list[float](), 0
    while child.returncode is None:
        began = time.monotonic()
        seen = {one.key async for page in store.list_objects(prefix) for one in page if one.key.endswith(".parquet")}
        looks += 1
        has_outputs = bool(seen - inputs)
        if has_outputs and seen & inputs:
            doubled += [began, time.monotonic()]
        missing += not has_outputs and not seen >= inputs
        if has_outputs and not seen & inputs:
            await child.wait()
        await asyncio.sleep(0)
    assert child.stdout is not None
    told = json.loads(await child.stdout.read())["twice"]
    span = doubled[-1] - doubled[0] if doubled else 0.0
    print(
        f"{files} files: of {looks} looks {len(doubled) // 2} saw rows twice, within {span * 1e3:.0f} ms; "
        f"{missing} saw rows missing; the compactor's own figure is {told * 1e3:.0f} ms",
        flush=True,
    )


def _store() -> LakeStore:
    from arcpipe.config.load import load

    settings = load(None, os.environ)
    return open_store(settings.storage.url, settings.storage.s3)


@contextlib.contextmanager
def _s3_server(folder: Path) -> Iterator[int]:
    """Run moto with an empty bucket in a process. Yields its port."""
    program = (
        "import boto3, sys, time; from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False); server.start()\n"
        "url = 'http://%s:%d' % server.get_host_and_port()\n"
        "boto3.client('s3', endpoint_url=url, region_name='us-east-1', aws_access_key_id='a',\n"
        f"             aws_secret_access_key='b').create_bucket(Bucket={_BUCKET!r})\n"
        "print(server.get_host_and_port()[1], flush=True); time.sleep(1e6)\n"
    )
    with (folder / "moto").open("wb") as errors:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=errors)
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()


@contextlib.asynccontextmanager
async def _slow(port: int, latency: float) -> AsyncIterator[int]:
    """Forward connections to a port; what clients send arrives later. Yields the port to use."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if delay and len(data) < _CHUNK:  # the end of a request
                    await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, far_writer, latency), forward(far_reader, writer, 0))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


if __name__ == "__main__":
    main()
