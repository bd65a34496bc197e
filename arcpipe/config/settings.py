"""Settings: one frozen struct per section of the TOML file.

A field's type has the bounds of the key, and its default is the key's default. `config.load` makes `Settings` from a
file and the environment. This module does not know who uses a setting; it opens no socket, directory or store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from arcpipe.config import cores
from arcpipe.config.column_types import ColumnTypes
from arcpipe.config.dedup_words import DedupWords
from arcpipe.config.listeners import Listener, Listeners, Paths, Proxies
from arcpipe.config.name_lists import Names
from arcpipe.config.retention_days import RetentionDays
from arcpipe.config.settings_tables import SECRETS as SECRETS_OF_TABLES
from arcpipe.config.settings_tables import Tables
from arcpipe.config.value_types import YEAR_SECONDS, PathText, Seconds, SecondsOrZero, SizeMB, Text
from arcpipe.errors import ConfigError

_MAX_WORKERS = 256

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
# A limit of a rate, per second; 0 is no limit.
PerSecond = Annotated[float, Meta(ge=0, le=1e9)]

Host = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9.:_%-]*\Z",
        description="an IP address or a host name, such as 127.0.0.1, ::1 or ingest.example; or empty",
    ),
]
EndpointURL = Annotated[
    str,
    Meta(
        pattern=r"^(https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?)?\Z",
        description="empty, or http://host:port or https://host:port without user name and password",
    ),
]
Region = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*\Z", description="empty, or a region name such as eu-central-1")]
KMSKey = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9:/_-]{0,2048}\Z", description="empty, or the id, alias or ARN of a key of AWS KMS")
]
# Other servers have classes of their own. What is in an archive cannot be read, and so neither compacted nor queried.
StorageClass = Annotated[
    str,
    Meta(
        pattern=r"^(?!(GLACIER|DEEP_ARCHIVE)\Z)[A-Za-z0-9_.-]{0,64}\Z",
        description="empty, or a class whose objects can be read at once, such as STANDARD_IA or INTELLIGENT_TIERING",
    ),
]

_ORIGIN = r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
OriginList = Annotated[
    str,
    Meta(
        pattern=rf"^[ ,]*(\*|{_ORIGIN}([ ,]+{_ORIGIN})*)?[ ,]*\Z",
        description='empty, "*", or origins such as https://app.example with blanks between them, and without a path',
    ),
]
HostList = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._ ,*-]*\Z",
        description='empty, "*", or host names such as ingest.example with blanks between them, and without a port',
    ),
]

Codec = Literal["zstd", "snappy", "gzip", "lz4", "none"]
# The levels that pyarrow accepts for a codec; other codecs have no levels.
CODEC_LEVELS: dict[str, range] = {"zstd": range(1, 23), "gzip": range(1, 10), "lz4": range(1, 13)}


class Server(Struct, frozen=True, kw_only=True):
    """`[server]`: the listening sockets, and the limits of connections and requests."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    workers: Annotated[int, Meta(ge=0, le=_MAX_WORKERS)] = 0
    backlog: Annotated[int, Meta(ge=1, le=65535)] = 4096
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10000
    # A WAL entry has a 32-bit length, and the envelope needs some of these bytes.
    max_body_mb: Annotated[int, Meta(ge=1, le=1024)] = 100
    max_header_kb: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_headers: Annotated[int, Meta(ge=1, le=10_000)] = 100
    max_url_kb: Annotated[int, Meta(ge=1, le=1024)] = 8
    max_pipelined: Annotated[int, Meta(ge=1, le=10_000)] = 64
    max_inflight_mb: SizeMB = 256
    header_timeout_seconds: Seconds = 10.0
    body_timeout_seconds: Seconds = 30.0
    max_body_seconds: Seconds = 300.0
    keep_alive_seconds: Seconds = 75.0
    request_ids: bool = False
    tls_cert: Text = ""
    tls_key: Text = ""
    cors_origins: OriginList = ""
    allowed_hosts: HostList = ""
    tls_client_ca: Text = ""
    tls_client_auth: Literal["required", "optional"] = "required"
    paths: Paths = "all"
    proxy_protocol: bool = False
    trusted_proxies: Proxies = ()
    forwarded_header: Literal["X-Forwarded-For", "Forwarded", ""] = "X-Forwarded-For"
    listeners: Listeners = ()

    def all_listeners(self) -> list[Listener]:
        """Return the listener of `host`, if there is one, and then `listeners`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        main = Listener(
            address=f"{host}:{self.port}",
            paths=self.paths,
            tls=bool(self.tls_cert),
            proxy_protocol=self.proxy_protocol,
        )
        return [*([main] if self.host else []), *self.listeners]

    def worker_count(self) -> int:
        """Return the number of ingest workers: `workers`, or one for each core of this process."""
        return self.workers or min(cores.available().number, _MAX_WORKERS)


class Auth(Struct, frozen=True, kw_only=True):
    """`[auth]`: who may write and read."""

    enabled: bool = False
    allow_anonymous: bool = False
    tokens_file: PathText = "tokens.toml"


class ClientLimits(Struct, frozen=True, kw_only=True):
    """`[limits.per_token]` and `[limits.per_address]`: limits of one client on the whole node; 0 is no limit."""

    requests_per_second: PerSecond = 0.0
    mb_per_second: PerSecond = 0.0
    connections: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return bool(self.requests_per_second or self.mb_per_second or self.connections)


class Limits(Struct, frozen=True, kw_only=True):
    """`[limits]`: limits of each client on the whole node."""

    burst_seconds: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    max_tracked: Annotated[int, Meta(ge=256, le=4_194_304)] = 16384
    ipv6_prefix: Annotated[int, Meta(ge=1, le=128)] = 64
    per_token: ClientLimits = ClientLimits()
    per_address: ClientLimits = ClientLimits()


class Ingest(Struct, frozen=True, kw_only=True):
    """`[ingest]`: what is written of a body."""

    accept_partial: bool = True


class Idempotency(Struct, frozen=True, kw_only=True):
    """`[idempotency]`: how long a client's retry is known by its Idempotency-Key."""

    window_seconds: Seconds = 86_400.0
    max_keys: Annotated[int, Meta(ge=1, le=100_000_000)] = 10_000_000


class RemoteWrite(Struct, frozen=True, kw_only=True):
    """`[remote_write]`: how series of Prometheus become tables."""

    tables: Literal["one", "metric"] = "one"
    promote: Names = ()
    metadata: bool = True


class OTLP(Struct, frozen=True, kw_only=True):
    """`[otlp]`: how telemetry of OpenTelemetry becomes tables."""

    promote: Names = ()


class WAL(Struct, frozen=True, kw_only=True):
    """`[wal]`: the write-ahead log."""

    enabled: bool = True
    dir: PathText = "./data/wal"
    sync_mode: Literal["fsync", "fdatasync", "async"] = "fdatasync"
    async_interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1000
    max_size_mb: Annotated[int, Meta(ge=1, le=4096)] = 100
    max_age_seconds: Seconds = 3600.0
    recycle: bool = True
    free_segments: Annotated[int, Meta(ge=0, le=1024)] = 6
    keep_recovered_seconds: SecondsOrZero = 86400.0
    max_backlog_mb: SizeMB = 20480
    min_free_mb: Annotated[int, Meta(ge=0, le=1 << 30)] = 512


class Flush(Struct, frozen=True, kw_only=True):
    """`[flush]`: when a segment goes to the uploader before it is full."""

    max_records: Count = 1_000_000
    max_age_seconds: Seconds = 5.0


class Parquet(Struct, frozen=True, kw_only=True):
    """`[parquet]`: the files in the store."""

    compression: Codec = "zstd"
    compression_level: Annotated[int, Meta(ge=1, le=22)] = 1
    row_group_rows: Count = 1048576
    max_file_mb: SizeMB = 256
    encodings: Literal["common", "small"] = "common"
    keep_nanoseconds: bool = False

    @property
    def codec_level(self) -> int | None:
        """`compression_level`, or None for a codec without levels, because pyarrow refuses one for it."""
        return self.compression_level if self.compression in CODEC_LEVELS else None


class Schema(Struct, frozen=True, kw_only=True):
    """`[schema]`: the types of new columns."""

    untyped_integers: Literal["i64", "f64"] = "i64"
    types: ColumnTypes = {}  # msgspec copies it


class StorageS3(Struct, frozen=True, kw_only=True):
    """`[storage.s3]`: how to reach an `s3://` store; empty values leave it to the AWS default chain."""

    endpoint_url: EndpointURL = ""
    region: Region = ""
    access_key_id: Text = ""
    secret_access_key: Text = ""
    session_token: Text = ""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""
    kms_key_id: KMSKey = ""
    storage_class: StorageClass = ""

    def __repr__(self) -> str:
        """Return the settings without credentials, because tracebacks and logs contain such texts."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        shown = (f"{name}={printable(f'storage.s3.{name}', value)!r}" for name, value in values)
        return f"StorageS3({', '.join(shown)})"


class FileLocation(NamedTuple):
    """A local directory as the store; a relative path counts from the working directory."""

    path: Path


class S3Location(NamedTuple):
    """A bucket and a key prefix as the store; `prefix` has no slash at either end and may be empty."""

    bucket: str
    prefix: str


class CloudLocation(NamedTuple):
    """A bucket of Google (gs) or a container of Azure (az) and a key prefix as the store; `prefix` as with S3."""

    scheme: str
    bucket: str
    prefix: str


class Storage(Struct, frozen=True, kw_only=True):
    """`[storage]`: where the Parquet files go."""

    url: Text = "file://./data/lake"
    layout: Literal["arc", "hive"] = "arc"
    s3: StorageS3 = StorageS3()

    @property
    def location(self) -> FileLocation | S3Location | CloudLocation:
        """The parsed `url`. Raises ConfigError if it is invalid, which `load` has ruled out."""
        return parse_storage_url(self.url)


class Uploader(Struct, frozen=True, kw_only=True):
    """`[uploader]`: the uploader's share of the machine, and the rhythm of its batches."""

    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    concurrent_uploads: Annotated[int, Meta(ge=1, le=256)] = 32
    nice: Annotated[int, Meta(ge=0, le=19)] = 5
    interval_seconds: SecondsOrZero = 60.0
    batch_mb: SizeMB = 512


class Compaction(Struct, frozen=True, kw_only=True):
    """`[compaction]`: the files of closed hours become few large ones."""

    enabled: bool = False
    after_seconds: Annotated[float, Meta(ge=60, le=YEAR_SECONDS)] = 900.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    memory_mb: Annotated[int, Meta(ge=512, le=1 << 20)] = 600
    dedup: DedupWords = {}  # msgspec copies it


class Retention(Struct, frozen=True, kw_only=True):
    """`[retention]`: hours that are too old are deleted."""

    days: RetentionDays = {}  # msgspec copies it


class Shutdown(Struct, frozen=True, kw_only=True):
    """`[shutdown]`: time limits after SIGTERM."""

    delay_seconds: SecondsOrZero = 0.0
    drain_seconds: SecondsOrZero = 30.0


class Log(Struct, frozen=True, kw_only=True):
    """`[log]`: level and format of the log on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


class AccessLog(Struct, frozen=True, kw_only=True):
    """`[access_log]`: a line for each request."""

    format: Literal["off", "json", "combined"] = "off"
    path: PathText = "stderr"
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    always_errors: bool = True


# The value of a key as in TOML; `server.listeners` and `server.trusted_proxies` are lists.
Value = bool | int | float | str | list[Any]


class EffectiveValue(NamedTuple):
    """One setting as it applies, safe to print: credentials are masked."""

    key: str
    value: Value
    source: str


class Settings(Struct, frozen=True, kw_only=True):
    """All settings. `Settings()` has all defaults; `load` makes those of a process."""

    server: Server = Server()
    auth: Auth = Auth()
    limits: Limits = Limits()
    ingest: Ingest = Ingest()
    idempotency: Idempotency = Idempotency()
    remote_write: RemoteWrite = RemoteWrite()
    otlp: OTLP = OTLP()
    wal: WAL = WAL()
    flush: Flush = Flush()
    parquet: Parquet = Parquet()
    schema: Schema = Schema()
    storage: Storage = Storage()
    uploader: Uploader = Uploader()
    compaction: Compaction = Compaction()
    retention: Retention = Retention()
    tables: Tables = Tables()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
    access_log: AccessLog = AccessLog()
    # Dotted key -> source of its value; keys that nobody has set are missing.
    sources: dict[str, str] = {}
    # Of variables that look like settings and are not used, and of settings that are not safe together. The server logs
    # them when it starts.
    warnings: tuple[str, ...] = ()

    @property
    def batch_interval_seconds(self) -> float:
        """`uploader.interval_seconds`; 0 with the WAL off, because then records that wait are not on disk."""
        return self.uploader.interval_seconds if self.wal.enabled else 0.0

    @property
    def has_upkeep(self) -> bool:
        """Whether the lake needs a process of its own: to merge files, or to delete old ones."""
        return self.compaction.enabled or bool(self.retention.days)

    @property
    def has_tables(self) -> bool:
        """Whether what is uploaded becomes part of tables."""
        return self.tables.format != "none"

    def value(self, key: str) -> Value:
        """Return the value of a dotted key such as "wal.dir".

        Raises:
            KeyError: there is no such key.
        """
        keys()[key]
        found: Any = self
        for name in key.split("."):
            found = getattr(found, name)
        return [msgspec.to_builtins(one) for one in found] if isinstance(found, tuple) else found

    def source(self, key: str) -> str:
        """Return the source of a dotted key's value.

        Returns:
            "default", the file's path, "credential NAME" or "environment NAME".
        """
        keys()[key]
        return self.sources.get(key, "default")

    def effective(self) -> Iterator[EffectiveValue]:
        """Return all settings in the order of the sections, with their sources."""
        for key in keys():
            yield EffectiveValue(key, printable(key, self.value(key)), self.source(key))


class Key(NamedTuple):
    """The type and the default of a key."""

    type: Any
    default: Any


@cache
def fields_of(section: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of a section. msgspec takes a millisecond, as it evaluates annotations."""
    return msgspec.structs.fields(section)


@cache
def keys() -> dict[str, Key]:
    """Return all dotted keys with type and default, in the order of their declaration."""

    def walk(section: type[Struct], prefix: str) -> Iterator[tuple[str, Key]]:
        for field in fields_of(section):
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                yield from walk(field.type, f"{prefix}{field.name}.")
            elif section is not Settings:
                yield f"{prefix}{field.name}", Key(field.type, field.default)

    return dict(walk(Settings, ""))


@cache
def sections() -> tuple[str, ...]:
    """Return the dotted names of all sections."""
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in keys()))


_SECRETS_OF_S3 = {f"storage.s3.{name}" for name in ("access_key_id", "secret_access_key", "session_token")}
_SECRETS = SECRETS_OF_TABLES | _SECRETS_OF_S3
_MASK = "********"
# The content of a PEM file in place of its path: its first line, or the Base64 text of a key.
PASTED = re.compile(r"-----BEGIN |\A\s*M[A-Za-z0-9+/=\s]{60,}\Z")


def printable(key: str, value: Any) -> Any:
    """Return a value for printing: credentials, and those in URLs, are masked."""
    if key in _SECRETS:
        return _MASK if value != "" else ""
    if PASTED.search(value if isinstance(value, str) else str(value)):
        return _MASK
    if isinstance(value, str):
        return re.sub(r"(?<=://)([^/]*|[^@]*:.*)@", f"{_MASK}@", value)
    return value


def parse_storage_url(url: str) -> FileLocation | S3Location | CloudLocation:
    """Parse `storage.url`.

    Raises:
        ConfigError: it is invalid; the text says what is allowed.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "file" and separator:
        # A bare name after file:// is ambiguous: it could be a host or a directory.
        if not rest.startswith(("/", "./", "../")):
            raise ConfigError("allowed after file:// is /absolute/path or ./relative/path")
        return FileLocation(Path(rest))
    if scheme in ("s3", "gs", "az") and separator:
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
            name = "a container" if scheme == "az" else "a bucket"
            raise ConfigError(
                f"allowed after {scheme}:// is {name} of 3 to 63 letters, digits, dots, dashes, then /prefix"
            )
        if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
            raise ConfigError('the prefix may not have empty, "." or ".." parts')
        return S3Location(bucket, prefix) if scheme == "s3" else CloudLocation(scheme, bucket, prefix)
    raise ConfigError(
        "allowed: file://./relative/path, file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix or "
        "az://container/prefix"
    )
