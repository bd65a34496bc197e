"""Making checkpoints, with deltalake: what all commits of a table come to, so that readers need not read each of them.

A checkpoint is no part of a commit: without it a table is right, and slower to open. So whatever goes wrong with one is
logged and forgotten, and the next one is tried after ten more commits.

deltalake is imported at the first one. It must not be imported before the process that commits was forked.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from arcpipe.config.settings import FileLocation, S3Location, Storage
from arcpipe.storage.cloud_environment import is_without_tls
from arcpipe.storage.local_files import sync_directory
from arcpipe.tables.delta.paths import LAST_CHECKPOINT, LOG

log = logging.getLogger(__name__)

INTERVAL: Final = 10
"""Commits from one checkpoint to the next: the default of every writer, `delta.checkpointInterval`."""


def make_checkpoint(storage: Storage, root: str) -> int | None:
    """Make a checkpoint of the table's latest version. It blocks.

    Returns:
        The version; None if it could not be made, which is logged.
    """
    try:
        from deltalake import DeltaTable

        table = DeltaTable(uri_of(storage, root), storage_options=options_of(storage))
        table.create_checkpoint()
        version = int(table.version())
        location = storage.location
        if isinstance(location, FileLocation):
            _sync(os.path.join(location.path, root, LOG), version)
    except BaseException as error:
        # A panic of its Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:500]
        log.warning("no checkpoint of the Delta table %s could be made, so it opens slower: %s", root, reason)
        return None
    return version


def _sync(folder: str, version: int) -> None:
    """Make a checkpoint durable: deltalake does not, and a hint at a damaged one stops every reader."""
    for name in (f"{version:020}.checkpoint.parquet", LAST_CHECKPOINT):
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_directory(folder)


def uri_of(storage: Storage, root: str) -> str:
    """Return the place of a table, as deltalake and its like take it."""
    location = storage.location
    if isinstance(location, FileLocation):
        return os.path.join(os.path.abspath(location.path), root)
    scheme = "s3" if isinstance(location, S3Location) else location.scheme
    return "/".join(filter(None, (f"{scheme}://{location.bucket}", location.prefix, root)))


def options_of(storage: Storage) -> dict[str, str]:
    """Return the options with which deltalake reaches the store; empty values leave it to its own defaults.

    It reaches Google's and Azure's by the variables that the store takes, too: both have the same library below.
    """
    if not isinstance(storage.location, S3Location):
        return {"allow_http": "true"} if is_without_tls() else {}
    s3 = storage.s3
    found = {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ALLOW_HTTP": "true" if s3.endpoint_url.startswith("http://") else "",
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "AWS_SESSION_TOKEN": s3.session_token,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": {"virtual": "true", "path": "false"}.get(s3.addressing_style, ""),
        "AWS_SERVER_SIDE_ENCRYPTION": s3.server_side_encryption,
        "AWS_SSE_KMS_KEY_ID": s3.kms_key_id,
    }
    return {name: value for name, value in found.items() if value}
