"""What the SDK reads before its first request to S3, read before a fork."""

from __future__ import annotations

import asyncio
import contextlib
import functools

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError


@functools.cache
def read_models() -> None:
    """Have the SDK read its descriptions of S3 here, once, and not in each fork: 0.07 s of a core."""
    asyncio.run(_ask_nobody())


async def _ask_nobody() -> None:
    from arcpipe.storage.s3 import S3Store

    nobody = StorageS3(endpoint_url="http://127.0.0.1:1", access_key_id="-", secret_access_key="-")
    store = S3Store("bucket", "", nobody)
    with contextlib.suppress(StorageError):
        await store.exists("key")
    await store.close()
