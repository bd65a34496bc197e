"""Checks of settings in combination; the type of each setting checks its own value."""

from __future__ import annotations

import os
from collections.abc import Iterator

from arcpipe.config.checks_iceberg import problems_of_iceberg
from arcpipe.config.listeners import is_loopback
from arcpipe.config.problem import Problem
from arcpipe.config.settings import CODEC_LEVELS, ClientLimits, FileLocation, Settings, parse_storage_url
from arcpipe.errors import ConfigError


def problems_of(settings: Settings) -> Iterator[Problem]:
    """Find the problems of settings in combination."""
    server, parquet = settings.server, settings.parquet

    yield from _of_listeners(settings)
    if server.max_inflight_mb < server.max_body_mb:
        yield Problem(
            "server.max_inflight_mb",
            f"a body of server.max_body_mb could never be read: allowed is at least {server.max_body_mb}",
            ("server.max_body_mb",),
        )
    for name in ClientLimits.__struct_fields__:
        key = f"limits.per_token.{name}"
        if settings.value(key) and not settings.auth.enabled:
            yield Problem(key, "there are no tokens without auth.enabled = true", ("auth.enabled",))
    for one, other in (
        ("server.tls_cert", "server.tls_key"),
        ("storage.s3.access_key_id", "storage.s3.secret_access_key"),
    ):
        if bool(settings.value(one)) != bool(settings.value(other)):
            present, missing = (one, other) if settings.value(one) else (other, one)
            yield Problem(present, f"{missing} is not set: set both or neither", (missing,))

    yield from _of_s3(settings)
    levels = CODEC_LEVELS.get(parquet.compression)
    if levels is None:
        # 1 is the default, and a file that lists every key has it, too.
        if parquet.compression_level != 1:
            yield Problem(
                "parquet.compression_level",
                f'"{parquet.compression}" has no levels: leave this key at 1',
                ("parquet.compression",),
            )
    elif parquet.compression_level not in levels:
        yield Problem(
            "parquet.compression_level",
            f'allowed for "{parquet.compression}": a whole number from {levels[0]} to {levels[-1]}',
            ("parquet.compression",),
        )
    yield from problems_of_iceberg(settings)
    try:
        store = parse_storage_url(settings.storage.url)
    except ConfigError as error:
        yield Problem("storage.url", str(error))
        return
    if isinstance(store, FileLocation) and _is_same(str(store.path), settings.wal.dir):
        # A database called node.json or schema.json would be a folder of that name, and block uploads for good.
        yield Problem("storage.url", "it is the WAL directory: name one for the store alone", ("wal.dir",))


def warnings_of(settings: Settings) -> Iterator[str]:
    """Describe combinations of settings that work, and are not safe."""
    server = settings.server
    if server.tls_cert and not any(one.tls for one in server.all_listeners()):
        wanted = "the certificate, and server.tls_client_ca," if server.tls_client_ca else "the certificate"
        yield (
            f"server.tls_cert = {server.tls_cert} is not used: no listener speaks TLS, so {wanted} protect nobody. "
            "Set tls = true for entries of server.listeners, or a server.host"
        )
    store = parse_storage_url(settings.storage.url)
    if isinstance(store, FileLocation) and _is_within(settings.wal.dir, str(store.path)):
        yield (
            f"wal.dir = {settings.wal.dir} is inside of storage.url = {settings.storage.url}: a database may meet it "
            "by its name, and readers of the whole store find its scratch files. "
            "Stop the server, move the directory, and set wal.dir"
        )


def _is_within(inner: str, outer: str) -> bool:
    try:
        return os.path.realpath(inner).startswith(os.path.join(os.path.realpath(outer), ""))
    except OSError:  # as below
        return False


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except OSError:  # the working directory is gone, which the start tells
        return False


def _of_s3(settings: Settings) -> Iterator[Problem]:
    """Find the problems of the settings of an S3 store in combination."""
    s3 = settings.storage.s3
    if s3.session_token and not s3.access_key_id:
        reason = "it belongs to temporary keys, and storage.s3.access_key_id is not set: set all three or none"
        yield Problem("storage.s3.session_token", reason, ("storage.s3.access_key_id",))
    if s3.kms_key_id and s3.server_side_encryption not in ("aws:kms", "aws:kms:dsse"):
        reason = 'it would not be used: set storage.s3.server_side_encryption = "aws:kms" or "aws:kms:dsse", too'
        yield Problem("storage.s3.kms_key_id", reason, ("storage.s3.server_side_encryption",))


def _of_listeners(settings: Settings) -> Iterator[Problem]:
    """Find the problems of listeners in combination with other settings."""
    server = settings.server
    found = server.all_listeners()
    if not found:
        reason = "nobody could reach the server: name an address, or at least one of server.listeners"
        yield Problem("server.host", reason, ("server.listeners",))
    addresses = [one.address for one in found if one.path or one.tcp.port]
    for address in dict.fromkeys(addresses):
        if addresses.count(address) > 1:
            reason = f"two listeners have the address {address}"
            yield Problem("server.listeners", reason, ("server.host", "server.port"))
    if any(one.tls for one in server.listeners) and not server.tls_cert:
        reason = "a listener with tls = true needs server.tls_cert and server.tls_key"
        yield Problem("server.listeners", reason, ("server.tls_cert",))
    if any(one.proxy_protocol for one in found) and not server.trusted_proxies:
        reason = "a listener with proxy_protocol = true accepts only connections from these, and there are none"
        yield Problem("server.trusted_proxies", reason, ("server.listeners", "server.proxy_protocol"))
    if server.tls_client_ca and not server.tls_cert:
        reason = "client certificates need TLS: set server.tls_cert and server.tls_key, too"
        yield Problem("server.tls_client_ca", reason, ("server.tls_cert",))
    if not (settings.auth.enabled or settings.auth.allow_anonymous):
        for one in found:
            if not one.path and not is_loopback(one.tcp.host):
                key = "server.listeners" if one in server.listeners else "server.host"
                where = "this address" if key == "server.host" else one.address
                reason = (
                    f"anyone who reaches {where} could write: listen on 127.0.0.1, set auth.enabled = true, "
                    "or say with auth.allow_anonymous = true that this is meant"
                )
                yield Problem(key, reason, ("auth.enabled", "auth.allow_anonymous"))
