"""Typed settings: defaults <- TOML file <- credentials <- environment, checked whole before anything starts.

One frozen struct per section of the TOML file: a field's type carries the bounds of the key, a field's
default is the key's. `load` puts the four layers together, remembers where every value came from, and
reports all that is wrong at once. This room must not know who uses a setting for what: it opens no socket,
directory or store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Struct

from arcpipe.config import cores, variables
from arcpipe.config import listeners as listener_settings
from arcpipe.config.listeners import Listeners, Paths, Proxies
from arcpipe.config.spelling import nearest
from arcpipe.errors import ConfigError

# What every `…_kb` and `…_mb` setting counts in, as bytes.
KB = 1024
MB = 1024 * KB

_YEAR_SECONDS = 365 * 86400
_MAX_WORKERS = 256

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
SizeMB = Annotated[int, Meta(ge=1, le=1 << 30)]
Seconds = Annotated[float, Meta(gt=0, le=_YEAR_SECONDS)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=_YEAR_SECONDS)]
# A limit of a rate: so many in a second, 0 for no limit.
PerSecond = Annotated[float, Meta(ge=0, le=1e9)]

# Surrogates are bytes of an environment variable that are not UTF-8.
_CONTROL = r"\x00-\x1f\x7f\ud800-\udfff"
Text = Annotated[str, Meta(pattern=rf"^[^{_CONTROL}]*\Z", description="text without control characters")]
PathText = Annotated[
    str, Meta(pattern=rf"^[^{_CONTROL}]+\Z", description="a path, not empty, without control characters")
]
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
# The levels that pyarrow takes for a codec; a codec that is not here has none.
_CODEC_LEVELS: dict[str, range] = {"zstd": range(1, 23), "gzip": range(1, 10), "lz4": range(1, 13)}


class Server(Struct, frozen=True, kw_only=True):
    """`[server]`: the listening sockets, and the limits of what comes in over them."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    workers: Annotated[int, Meta(ge=0, le=_MAX_WORKERS)] = 0
    backlog: Annotated[int, Meta(ge=1, le=65535)] = 4096
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10000
    # A WAL entry counts its payload in 32 bits, and the envelope wants a few of those bytes.
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

    def worker_count(self) -> int:
        """How many ingest workers to fork: `workers`, or one per core that this process has."""
        return self.workers or min(cores.available().number, _MAX_WORKERS)


class Auth(Struct, frozen=True, kw_only=True):
    """`[auth]`: who may write and read."""

    enabled: bool = False
    allow_anonymous: bool = False
    tokens_file: PathText = "tokens.toml"


class ClientLimits(Struct, frozen=True, kw_only=True):
    """`[limits.per_token]` and `[limits.per_address]`: the most of one client on the whole node; 0 is no limit."""

    requests_per_second: PerSecond = 0.0
    mb_per_second: PerSecond = 0.0
    connections: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return bool(self.requests_per_second or self.mb_per_second or self.connections)


class Limits(Struct, frozen=True, kw_only=True):
    """`[limits]`: the most that one client may ask of the whole node."""

    burst_seconds: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    max_tracked: Annotated[int, Meta(ge=256, le=4_194_304)] = 16384
    ipv6_prefix: Annotated[int, Meta(ge=1, le=128)] = 64
    per_token: ClientLimits = ClientLimits()
    per_address: ClientLimits = ClientLimits()


class WAL(Struct, frozen=True, kw_only=True):
    """`[wal]`: the write-ahead log."""

    enabled: bool = True
    dir: PathText = "./data/wal"
    sync_mode: Literal["fsync", "fdatasync", "async"] = "fdatasync"
    async_interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1000
    max_size_mb: Annotated[int, Meta(ge=1, le=4096)] = 100
    max_age_seconds: Seconds = 3600.0
    recycle: bool = True
    free_segments: Annotated[int, Meta(ge=0, le=1024)] = 4
    keep_recovered_seconds: SecondsOrZero = 86400.0
    max_backlog_mb: SizeMB = 20480
    min_free_mb: Annotated[int, Meta(ge=0, le=1 << 30)] = 512


class Flush(Struct, frozen=True, kw_only=True):
    """`[flush]`: when a segment goes to the uploader before it is full."""

    max_records: Count = 1_000_000
    max_age_seconds: Seconds = 5.0


class Parquet(Struct, frozen=True, kw_only=True):
    """`[parquet]`: the files that come out."""

    compression: Codec = "zstd"
    compression_level: Annotated[int, Meta(ge=1, le=22)] = 1
    row_group_rows: Count = 1048576
    max_file_mb: SizeMB = 256
    keep_nanoseconds: bool = False

    @property
    def codec_level(self) -> int | None:
        """`compression_level`, or None for a codec that has no levels and refuses to be given one."""
        return self.compression_level if self.compression in _CODEC_LEVELS else None


class StorageS3(Struct, frozen=True, kw_only=True):
    """`[storage.s3]`: how to reach an `s3://` store; empty values leave it to the AWS default chain."""

    endpoint_url: EndpointURL = ""
    region: Region = ""
    access_key_id: Text = ""
    secret_access_key: Text = ""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""

    def __repr__(self) -> str:
        """Without the credentials, because a repr ends in tracebacks and logs."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        shown = (f"{name}={_printable(f'storage.s3.{name}', value)!r}" for name, value in values)
        return f"StorageS3({', '.join(shown)})"


class FileLocation(NamedTuple):
    """A local directory as the store; a relative path counts from the working directory."""

    path: Path


class S3Location(NamedTuple):
    """A bucket and a key prefix as the store; `prefix` has no slash at either end and may be empty."""

    bucket: str
    prefix: str


class Storage(Struct, frozen=True, kw_only=True):
    """`[storage]`: where the Parquet files go."""

    url: Text = "file://./data/lake"
    layout: Literal["arc", "hive"] = "arc"
    s3: StorageS3 = StorageS3()

    @property
    def location(self) -> FileLocation | S3Location:
        """`url`, parsed. Raises ConfigError if it is none of the two kinds (`load` has checked that)."""
        return _parse_storage_url(self.url)


class Uploader(Struct, frozen=True, kw_only=True):
    """`[uploader]`: what the uploader process may use of the machine."""

    threads: Annotated[int, Meta(ge=1, le=256)] = 2
    concurrent_uploads: Annotated[int, Meta(ge=1, le=256)] = 8
    nice: Annotated[int, Meta(ge=0, le=19)] = 5


class Shutdown(Struct, frozen=True, kw_only=True):
    """`[shutdown]`: what SIGTERM gives time for."""

    delay_seconds: SecondsOrZero = 0.0
    drain_seconds: SecondsOrZero = 30.0


class Log(Struct, frozen=True, kw_only=True):
    """`[log]`: what goes to stderr, and how it looks."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


class AccessLog(Struct, frozen=True, kw_only=True):
    """`[access_log]`: a line for each request."""

    format: Literal["off", "json", "combined"] = "off"
    path: PathText = "stderr"
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    always_errors: bool = True


# Of a key as a person writes it: lists are those of `server.listeners` and `server.trusted_proxies`.
Value = bool | int | float | str | list[Any]


class EffectiveValue(NamedTuple):
    """One setting as it applies, safe to print: credentials are masked."""

    key: str
    value: Value
    source: str


class Settings(Struct, frozen=True, kw_only=True):
    """All settings. `Settings()` is all defaults; `load` is how a process gets its own."""

    server: Server = Server()
    auth: Auth = Auth()
    limits: Limits = Limits()
    wal: WAL = WAL()
    flush: Flush = Flush()
    parquet: Parquet = Parquet()
    storage: Storage = Storage()
    uploader: Uploader = Uploader()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
    access_log: AccessLog = AccessLog()
    # Dotted key -> where its value came from, for the keys that are not at their default by omission.
    sources: dict[str, str] = {}
    # Of what looks like a setting and is not used. The server tells them when it starts.
    warnings: tuple[str, ...] = ()

    def value(self, key: str) -> Value:
        """The value of a dotted key such as "wal.dir". Raises KeyError for a key that does not exist."""
        _keys()[key]
        found: Any = self
        for name in key.split("."):
            found = getattr(found, name)
        return [msgspec.to_builtins(one) for one in found] if isinstance(found, tuple) else found

    def source(self, key: str) -> str:
        """Where a dotted key's value came from: "default", the file's path, "credential NAME" or "environment NAME"."""
        _keys()[key]
        return self.sources.get(key, "default")

    def effective(self) -> Iterator[EffectiveValue]:
        """Every setting in the order of the sections, with its source."""
        for key in _keys():
            yield EffectiveValue(key, _printable(key, self.value(key)), self.source(key))


def load(config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Puts defaults, the TOML file (if any), a service manager's credentials and the environment together; later
    layers win.

    Raises ConfigError with one line per problem: where it came from, the key, the value and what is allowed.
    """
    problems: list[str] = []
    given: list[_Given] = []
    file_was_read = True
    if config_file is not None:
        try:
            document = _read_toml(config_file)
        except ConfigError as error:
            problems.append(str(error))
            file_was_read = False
        else:
            given += _from_table(document, "", str(config_file), problems)
    given += _from_credentials(environ, problems)
    given += _from_environment(environ)

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    refused: set[str] = set()
    for item in given:
        try:
            values[item.key] = _convert(item)
            sources[item.key] = item.source
        except ValueError as error:
            refused.add(item.key)
            problems.append(_problem(item.source, item.key, item.value, str(error)))

    if config_file is not None and sources.get(_TOKENS_FILE) in (None, str(config_file)):
        named = values.get(_TOKENS_FILE, _keys()[_TOKENS_FILE].default)
        values[_TOKENS_FILE] = str(config_file.parent / named)
    warnings = tuple(variables.warnings_of(environ, _environment_names()))
    settings: Settings = _assemble(Settings, "", {**values, "warnings": warnings}, sources)
    # What keys mean together says nothing as long as one of them is not known.
    if file_was_read:
        for check in _cross_checks(settings):
            if refused.isdisjoint((check.key, *check.with_keys)):
                value = settings.value(check.key)
                problems.append(_problem(settings.source(check.key), check.key, value, check.reason))
    if problems:
        raise ConfigError("\n".join((*problems, *warnings)))  # a mistyped variable may be the reason
    return settings


# --- the keys, as the structs above declare them


class _Key(NamedTuple):
    type: Any
    default: Any


@cache
def _keys() -> dict[str, _Key]:
    """Dotted key -> type and default, in the order in which the sections declare them."""

    def walk(section: type[Struct], prefix: str) -> Iterator[tuple[str, _Key]]:
        for field in msgspec.structs.fields(section):
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                yield from walk(field.type, f"{prefix}{field.name}.")
            elif section is not Settings:
                yield f"{prefix}{field.name}", _Key(field.type, field.default)

    return dict(walk(Settings, ""))


@cache
def _sections() -> tuple[str, ...]:
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in _keys()))


@cache
def _environment_names() -> dict[str, str]:
    """Variable -> dotted key; a later one wins, so Arc's own names come before the ARCPIPE_ ones."""
    return {
        "WAL_ENABLED": "wal.enabled",
        "WAL_DIR": "wal.dir",
        "WAL_SYNC_MODE": "wal.sync_mode",
        "WAL_MAX_SIZE_MB": "wal.max_size_mb",
        "WAL_MAX_AGE_SECONDS": "wal.max_age_seconds",
        "WRITE_BUFFER_SIZE": "flush.max_records",
        "WRITE_BUFFER_AGE": "flush.max_age_seconds",
        "WORKERS": "server.workers",
        **{variables.PREFIX + key.upper().replace(".", "_"): key for key in _keys()},
    }


# `arcpipe token`, run anywhere, and the server mean the same file: it counts from the settings file that names it.
_TOKENS_FILE = "auth.tokens_file"

_SECRETS = frozenset({"storage.s3.access_key_id", "storage.s3.secret_access_key"})
_MASK = "********"
# The content of a PEM file where its path belongs: its first line, or the Base64 of a key without it.
_PASTED = re.compile(r"-----BEGIN |\A\s*M[A-Za-z0-9+/=\s]{60,}\Z")


def _printable(key: str, value: Any) -> Any:
    """The value, or a mask where it is, or where a URL holds, a credential."""
    if key in _SECRETS:
        return _MASK if value != "" else ""
    if _PASTED.search(value if isinstance(value, str) else str(value)):
        return _MASK
    if isinstance(value, str):
        return re.sub(r"(?<=://)([^/]*|[^@]*:.*)@", f"{_MASK}@", value)
    return value


def asked_for(key: str, config_file: Path | None, environ: Mapping[str, str]) -> Any:
    """The value that somebody gave a key, checked or not, whatever else is wrong; None if nobody is known to have."""
    given: list[_Given] = []
    with contextlib.suppress(ConfigError):
        given += _from_table(_read_toml(config_file) if config_file else {}, "", "", [])
    given += _from_credentials(environ, [])
    given += _from_environment(environ)
    return next((one.value for one in reversed(given) if one.key == key), None)


# --- the layers


class _Given(NamedTuple):
    key: str
    value: Any
    source: str
    is_text: bool = False  # from the environment, where a number is spelled as text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: not UTF-8 text (at line {line})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _from_table(table: dict[str, Any], prefix: str, source: str, problems: list[str]) -> Iterator[_Given]:
    for name, value in table.items():
        key = prefix + name
        if key in _keys():
            yield _Given(key, value, source)
        elif key in _sections():
            if isinstance(value, dict):
                yield from _from_table(value, f"{key}.", source, problems)
            else:
                problems.append(f"{source}: {key} is a section, not a value: write [{key}] and its keys")
        # The value stays unsaid below: under a misspelled name it may be a credential.
        elif isinstance(value, dict):
            meant = nearest(key, _sections())
            problems.append(f"{source}: [{key}] is not a section" + (meant and f"; did you mean [{meant}]?"))
        else:
            meant = nearest(key, _keys())
            problems.append(f"{source}: {key} is not a setting" + (meant and f"; did you mean {meant}?"))


_CREDENTIAL_PREFIX = "arcpipe."
# A credential named after one of these is the file whose path they hold; any other is a value.
_PATHS_OF_SECRETS = frozenset({"auth.tokens_file", "server.tls_cert", "server.tls_key", "server.tls_client_ca"})


def _from_credentials(environ: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    """The files `arcpipe.{key}` in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), LoadCredential=); others are not ours."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        return
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith(_CREDENTIAL_PREFIX))
    except OSError as error:
        problems.append(f"environment CREDENTIALS_DIRECTORY: {directory} cannot be read: {error.strerror or error}")
        return
    for name in names:
        key = name.removeprefix(_CREDENTIAL_PREFIX)
        source = f"credential {name}"
        path = Path(directory, name)
        if key not in _keys():
            meant = nearest(key, _keys())
            problems.append(f"{source}: is not a setting" + (meant and f"; did you mean {_CREDENTIAL_PREFIX}{meant}?"))
        elif key in _PATHS_OF_SECRETS:
            yield _Given(key, str(path), source, is_text=True)
        else:
            try:
                # Editors and `echo` end a file with a newline, which is no part of a secret.
                yield _Given(key, path.read_text("utf-8").removesuffix("\n"), source, is_text=True)
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{source}: cannot be read: {error}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    links = variables.of_kubernetes(environ)
    for name, key in _environment_names().items():
        if name in environ and name not in links:
            yield _Given(key, environ[name], f"environment {name}", is_text=True)


_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _convert(given: _Given) -> Any:
    """The value in the key's type. Raises ValueError whose text says what is allowed."""
    kind = _keys()[given.key].type
    value = given.value
    if given.key in _PATHS_OF_SECRETS and isinstance(value, str) and _PASTED.search(value):
        raise ValueError("allowed: the path of a file, and this is the content of one")
    if kind in listener_settings.PARSERS:
        return listener_settings.PARSERS[kind](value, given.is_text)
    if given.is_text and kind is bool:
        value = _BOOLEANS.get(value.lower(), value)
    try:
        # Lenient for text ("5" is 5), but for booleans the table above is all there is.
        return msgspec.convert(value, kind, strict=not given.is_text or kind is bool)
    except msgspec.ValidationError:
        raise ValueError("allowed: " + _allowed(kind, value, given.is_text)) from None


def _allowed(kind: Any, value: Any, is_text: bool) -> str:
    choices = get_args(kind)
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.BoolType():
            return "true or false" + (" (or 1, yes, on; 0, no, off)" if is_text else "")
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.FloatType(gt=0, le=high):
            return f"a number above 0, up to {high}"
        case msgspec.inspect.FloatType(ge=low, le=high):
            return f"a number from {low} to {high}"
        case msgspec.inspect.LiteralType():
            meant = nearest(value, choices) if isinstance(value, str) else ""
            return ", ".join(json.dumps(choice) for choice in choices) + (meant and f'; did you mean "{meant}"?')
        case described:
            assert isinstance(described, msgspec.inspect.Metadata)
            assert described.extra_json_schema is not None
            return str(described.extra_json_schema["description"])


def _problem(source: str, key: str, value: Any, reason: str) -> str:
    shown = json.dumps(_printable(key, value), default=str)
    if len(shown) > 100:
        shown = shown[:97] + "..."
    return f"{source}: {key} = {shown}: {reason}"


def _assemble(section: type[Struct], prefix: str, values: dict[str, Any], sources: dict[str, str]) -> Any:
    arguments: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        key = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            arguments[field.name] = _assemble(field.type, f"{key}.", values, sources)
        elif key in values:
            arguments[field.name] = values[key]
    if section is Settings:
        arguments["sources"] = sources
    return section(**arguments)


# --- what keys mean together


class _Check(NamedTuple):
    """Something wrong with the value of `key`, in the light of the values of `with_keys`."""

    key: str
    reason: str
    with_keys: tuple[str, ...] = ()


def _cross_checks(settings: Settings) -> Iterator[_Check]:
    server, parquet = settings.server, settings.parquet

    yield from (_Check(*found) for found in listener_settings.contradictions(settings))
    if server.max_inflight_mb < server.max_body_mb:
        yield _Check(
            "server.max_inflight_mb",
            f"a body of server.max_body_mb could never be read: allowed is at least {server.max_body_mb}",
            ("server.max_body_mb",),
        )
    for name in ClientLimits.__struct_fields__:
        key = f"limits.per_token.{name}"
        if settings.value(key) and not settings.auth.enabled:
            yield _Check(key, "there are no tokens without auth.enabled = true", ("auth.enabled",))
    for one, other in (
        ("server.tls_cert", "server.tls_key"),
        ("storage.s3.access_key_id", "storage.s3.secret_access_key"),
    ):
        if bool(settings.value(one)) != bool(settings.value(other)):
            present, missing = (one, other) if settings.value(one) else (other, one)
            yield _Check(present, f"{missing} is not set: set both or neither", (missing,))

    levels = _CODEC_LEVELS.get(parquet.compression)
    if levels is None:
        # 1 is the default, which a file that lists every key spells out.
        if parquet.compression_level != 1:
            yield _Check(
                "parquet.compression_level",
                f'"{parquet.compression}" has no levels: leave this key at 1',
                ("parquet.compression",),
            )
    elif parquet.compression_level not in levels:
        yield _Check(
            "parquet.compression_level",
            f'allowed for "{parquet.compression}": a whole number from {levels[0]} to {levels[-1]}',
            ("parquet.compression",),
        )
    try:
        _parse_storage_url(settings.storage.url)
    except ConfigError as error:
        yield _Check("storage.url", str(error))


def _parse_storage_url(url: str) -> FileLocation | S3Location:
    scheme, separator, rest = url.partition("://")
    if scheme == "file" and separator:
        # A bare name after file:// would be a host to one reader and a directory to another.
        if not rest.startswith(("/", "./", "../")):
            raise ConfigError("allowed after file:// is /absolute/path or ./relative/path")
        return FileLocation(Path(rest))
    if scheme == "s3" and separator:
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
            raise ConfigError("allowed after s3:// is a bucket of 3 to 63 letters, digits, dots, dashes, then /prefix")
        if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
            raise ConfigError('the prefix may not have empty, "." or ".." parts')
        return S3Location(bucket, prefix)
    raise ConfigError("allowed: file://./relative/path, file:///absolute/path or s3://bucket/prefix")
