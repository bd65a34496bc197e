"""The settings: three layers, checked whole, with errors that a person can act on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pyarrow as pa
import pytest

from arcpipe.config.load import load
from arcpipe.config.settings import (
    Codec,
    FileLocation,
    Parquet,
    S3Location,
    Server,
    Settings,
    Storage,
    StorageS3,
)
from arcpipe.errors import ConfigError
from tests.support.program import service_variables

ROOT = Path(__file__).parents[3]
DEFAULTS = {key: value for key, value, _ in Settings().effective()}
SECRET = "wJalrXUtnFEMI/K7MDENG"

# Every key with a value that is allowed and is not its default, as TOML has it and as the environment spells it.
OTHER_VALUES: dict[str, tuple[Any, str]] = {
    "server.host": ("::1", "::1"),
    "server.port": (0, "0"),
    "server.workers": (3, "3"),
    "server.backlog": (1, "1"),
    "server.max_connections": (7, "7"),
    "server.max_body_mb": (1, "1"),
    "server.max_header_kb": (64, "64"),
    "server.max_headers": (10, "10"),
    "server.max_url_kb": (1, "1"),
    "server.max_pipelined": (1, "1"),
    "server.max_inflight_mb": (512, "512"),
    "server.header_timeout_seconds": (0.25, "0.25"),
    "server.body_timeout_seconds": (1.5, "1.5"),
    "server.max_body_seconds": (60.0, "60"),
    "server.keep_alive_seconds": (2.0, "2"),
    "server.request_ids": (True, "on"),
    "server.tls_cert": ("/etc/arcpipe/cert.pem", "/etc/arcpipe/cert.pem"),
    "server.tls_key": ("/etc/arcpipe/key.pem", "/etc/arcpipe/key.pem"),
    "server.cors_origins": ("https://app.example, http://[::1]:3000", "https://app.example, http://[::1]:3000"),
    "server.allowed_hosts": ("ingest.example  ingest", "ingest.example  ingest"),
    "server.tls_client_ca": ("/etc/arcpipe/clients.pem", "/etc/arcpipe/clients.pem"),
    "server.tls_client_auth": ("optional", "optional"),
    "server.paths": ("writes", "writes"),
    "server.proxy_protocol": (True, "true"),
    "server.trusted_proxies": (["10.0.0.0/8", "::1", "unix"], "10.0.0.0/8, ::1,unix"),
    "server.forwarded_header": ("Forwarded", "Forwarded"),
    "server.listeners": (
        [{"address": "unix:/run/arcpipe/ops.sock", "paths": "operations", "mode": "0600"}],
        '[{"address": "unix:/run/arcpipe/ops.sock", "paths": "operations", "mode": "0600"}]',
    ),
    "auth.enabled": (True, "yes"),
    "auth.allow_anonymous": (True, "yes"),
    "auth.tokens_file": ("/etc/arcpipe/tokens.toml", "/etc/arcpipe/tokens.toml"),
    "limits.burst_seconds": (0.5, "0.5"),
    "limits.max_tracked": (256, "256"),
    "limits.ipv6_prefix": (56, "56"),
    "limits.per_token.requests_per_second": (0.5, "0.5"),
    "limits.per_token.mb_per_second": (2.5, "2.5"),
    "limits.per_token.connections": (1, "1"),
    "limits.per_address.requests_per_second": (100.0, "100"),
    "limits.per_address.mb_per_second": (1e9, "1e9"),
    "limits.per_address.connections": (10, "10"),
    "ingest.accept_partial": (False, "no"),
    "idempotency.window_seconds": (60.5, "60.5"),
    "idempotency.max_keys": (5, "5"),
    "otlp.promote": (["host.name"], "host.name"),
    "remote_write.tables": ("metric", "metric"),
    "remote_write.promote": (["job", "instance"], "job, instance"),
    "remote_write.metadata": (False, "off"),
    "wal.enabled": (False, "off"),
    "wal.dir": ("/var/lib/arcpipe/wal", "/var/lib/arcpipe/wal"),
    "wal.sync_mode": ("async", "async"),
    "wal.async_interval_ms": (10, "10"),
    "wal.max_size_mb": (1, "1"),
    "wal.max_age_seconds": (0.5, "0.5"),
    "wal.recycle": (False, "FALSE"),
    "wal.free_segments": (0, "0"),
    "wal.keep_recovered_seconds": (0.0, "0"),
    "wal.max_backlog_mb": (1, "1"),
    "wal.min_free_mb": (0, "0"),
    "flush.max_records": (1, "1"),
    "flush.max_age_seconds": (0.1, "1e-1"),
    "parquet.compression": ("gzip", "gzip"),
    "parquet.compression_level": (9, "9"),
    "parquet.row_group_rows": (1000, "1000"),
    "parquet.max_file_mb": (1, "1"),
    "parquet.encodings": ("small", "small"),
    "parquet.keep_nanoseconds": (True, "On"),
    "schema.untyped_integers": ("f64", "f64"),
    "schema.types": ({"*.cpu.usage": "f64"}, '{"*.cpu.usage": "f64"}'),
    "storage.url": ("s3://bucket/some/prefix", "s3://bucket/some/prefix"),
    "storage.layout": ("hive", "hive"),
    "storage.s3.endpoint_url": ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    "storage.s3.region": ("eu-central-1", "eu-central-1"),
    "storage.s3.access_key_id": ("AKIAEXAMPLE", "AKIAEXAMPLE"),
    "storage.s3.secret_access_key": (SECRET, SECRET),
    "storage.s3.addressing_style": ("path", "path"),
    "storage.s3.session_token": (SECRET, SECRET),
    "storage.s3.server_side_encryption": ("aws:kms", "aws:kms"),
    "storage.s3.kms_key_id": ("alias/lake", "alias/lake"),
    "storage.s3.storage_class": ("STANDARD_IA", "STANDARD_IA"),
    "uploader.threads": (1, "1"),
    "uploader.concurrent_uploads": (1, "1"),
    "uploader.nice": (19, "19"),
    "uploader.interval_seconds": (2.5, "2.5"),
    "uploader.batch_mb": (64, "64"),
    "compaction.enabled": (True, "yes"),
    "compaction.after_seconds": (60.0, "60"),
    "compaction.nice": (0, "0"),
    "compaction.memory_mb": (512, "512"),
    "compaction.dedup": ({"db": "series_time"}, '{"db": "series_time"}'),
    "retention.days": ({"logs": 7}, '{"logs": 7}'),
    "tables.format": ("delta", "delta"),
    "tables.commit_interval_seconds": (5.0, "5"),
    "tables.max_uncommitted_mb": (1024, "1024"),
    "tables.history_hours": (168, "168"),
    "tables.iceberg.catalog": ("rest", "rest"),
    "tables.iceberg.uri": ("http://127.0.0.1:8181", "http://127.0.0.1:8181"),
    "tables.iceberg.warehouse": ("lake", "lake"),
    "tables.iceberg.partition": ("hour", "hour"),
    "tables.iceberg.namespace_prefix": ("arc_", "arc_"),
    "tables.iceberg.token": (SECRET, SECRET),
    "tables.iceberg.credential": (SECRET, SECRET),
    "tables.iceberg.scope": ("catalog", "catalog"),
    "tables.iceberg.oauth2_server_uri": ("http://127.0.0.1:8182/tokens", "http://127.0.0.1:8182/tokens"),
    "tables.iceberg.password": (SECRET, SECRET),
    "shutdown.delay_seconds": (2.5, "2.5"),
    "shutdown.drain_seconds": (0.0, "0"),
    "log.level": ("DEBUG", "DEBUG"),
    "log.format": ("json", "json"),
    "access_log.format": ("combined", "combined"),
    "access_log.path": ("/var/log/arcpipe/access.log", "/var/log/arcpipe/access.log"),
    "access_log.sample": (0.01, "0.01"),
    "access_log.always_errors": (False, "no"),
}


def variable(key: str) -> str:
    return "ARCPIPE_" + key.upper().replace(".", "_")


def in_toml(**tables: str) -> str:
    """`in_toml(wal="recycle = false")` is a file with that table."""
    return "\n".join(f"[{name.replace('__', '.')}]\n{body}" for name, body in tables.items())


def in_line(value: Any) -> str:
    """A value as TOML has it: JSON's, but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {in_line(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_line, value)) + "]"
    return msgspec.json.encode(value).decode()


def _key(name: str) -> str:
    return name if name.isidentifier() else msgspec.json.encode(name).decode()


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Loads settings from TOML text (in a file called config.toml) and environment variables."""

    def load_text(text: str | bytes = "", environ: dict[str, str] | None = None) -> Settings:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, environ or {})

    return load_text


def problems(load_text: Any, text: str | bytes = "", environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_text(text, environ)
    return str(raised.value).splitlines()


def same_type(value: object, other: object) -> bool:
    return value == other and type(value) is type(other)


# --- layers and sources


def test_without_file_and_environment_everything_is_at_its_default() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert {source for _, _, source in settings.effective()} == {"default"}


def test_config_toml_lists_every_key_at_its_default() -> None:
    path = ROOT / "config.toml"
    settings = load(path, {})
    assert {source for _, _, source in settings.effective()} == {str(path)}
    # The only one that counts from where the file is.
    expected = {**DEFAULTS, "auth.tokens_file": str(ROOT / "tokens.toml")}
    assert {key: value for key, value, _ in settings.effective()} == expected


def test_config_toml_explains_every_key_in_a_comment_above_it() -> None:
    lines = (ROOT / "config.toml").read_text().splitlines()
    for number, line in enumerate(lines):
        # The two halves of a pair share their comment.
        if re.match(r"[a-z]", line) and not line.startswith(("tls_key", "secret_access_key")):
            assert lines[number - 1].startswith("#"), line


def test_other_values_cover_every_key() -> None:
    assert set(OTHER_VALUES) == set(DEFAULTS)
    assert all(value != DEFAULTS[key] for key, (value, _) in OTHER_VALUES.items())


def test_every_key_is_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    lines = [f"{key} = {in_line(value)}" for key, (value, _) in OTHER_VALUES.items()]
    path.write_text("\n".join(lines))  # dotted keys are tables to TOML
    settings = load(path, {})
    for key, (value, _) in OTHER_VALUES.items():
        expected = str(tmp_path / value) if key == "auth.tokens_file" else value
        assert same_type(settings.value(key), expected), key
        assert settings.source(key) == str(path)


def test_every_key_is_read_from_the_environment() -> None:
    settings = load(None, {variable(key): text for key, (_, text) in OTHER_VALUES.items()})
    for key, (value, _) in OTHER_VALUES.items():
        assert same_type(settings.value(key), value), key
        assert settings.source(key) == f"environment {variable(key)}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('types = "f64"', "allowed: a table such as"),
        ('types = { "cpu.usage" = "f64" }', "cpu.usage: allowed: a table such as"),
        ('types = { "*.cpu.usage" = "f32" }', '*.cpu.usage: allowed: "i64", "f64", "bool", "str", "bytes"'),
        ("types = { " + ", ".join(f'"*.{n}" = "str"' for n in range(1_001)) + " }", "allowed: at most 1000 patterns"),
    ],
)
def test_types_of_columns_are_checked(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[schema]\n{text}\n")
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load(path, {})
    with pytest.raises(ConfigError, match="allowed: JSON such as"):
        load(None, {"ARCPIPE_SCHEMA_TYPES": "*.cpu.usage=f64"})


def test_every_key_has_a_variable_of_its_own() -> None:
    assert len({variable(key) for key in DEFAULTS}) == len(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("WAL_ENABLED", "false", "wal.enabled", False),
        ("WAL_DIR", "/mnt/nvme/wal", "wal.dir", "/mnt/nvme/wal"),
        ("WAL_SYNC_MODE", "fsync", "wal.sync_mode", "fsync"),
        ("WAL_MAX_SIZE_MB", "50", "wal.max_size_mb", 50),
        ("WAL_MAX_AGE_SECONDS", "1800", "wal.max_age_seconds", 1800.0),
        ("WRITE_BUFFER_SIZE", "100000", "flush.max_records", 100_000),
        ("WRITE_BUFFER_AGE", "1", "flush.max_age_seconds", 1.0),
        ("WORKERS", "16", "server.workers", 16),
    ],
)
def test_the_names_of_an_arc_installation_work(name: str, text: str, key: str, value: object) -> None:
    settings = load(None, {name: text})
    assert same_type(settings.value(key), value)
    assert settings.source(key) == f"environment {name}"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(config: Any) -> None:
    settings = config(in_toml(wal='dir = "from-file"\nmax_size_mb = 7'), {"WAL_DIR": "from-environment"})
    assert (settings.wal.dir, settings.source("wal.dir")) == ("from-environment", "environment WAL_DIR")
    assert settings.wal.max_size_mb == 7
    assert settings.source("wal.max_size_mb").endswith("/config.toml")
    assert (settings.wal.recycle, settings.source("wal.recycle")) == (True, "default")


def test_an_arcpipe_variable_wins_over_the_arc_name() -> None:
    """An ARCPIPE variable wins over the arc name in whatever order they are set."""
    both = {"ARCPIPE_SERVER_WORKERS": "2", "WORKERS": "9"}
    for environ in (both, dict(reversed(both.items()))):
        settings = load(None, environ)
        assert settings.server.workers == 2
        assert settings.source("server.workers") == "environment ARCPIPE_SERVER_WORKERS"


def test_variables_that_are_not_settings_are_left_alone() -> None:
    ours = {"ARCPIPE_CONFIG": "x.toml", "ARCPIPE_TOKEN": "secret", "ARCPIPE_TEST_SOMETHING": "1"}
    environ = ours | {"PATH": "/bin", "WAL_LEVEL": "9"}
    assert load(None, environ) == Settings()


# Credentials of a service manager


@pytest.fixture
def credentials(tmp_path: Path) -> Any:
    """Makes a credentials directory; returns the environment that names it."""

    def make(**files: str | bytes) -> dict[str, str]:
        directory = tmp_path / "credentials"
        directory.mkdir()
        for name, content in files.items():
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"CREDENTIALS_DIRECTORY": str(directory)}

    return make


def test_a_credential_named_after_a_setting_is_its_value(credentials: Any) -> None:
    environ = credentials(
        **{
            "arcpipe.storage.s3.access_key_id": "AKIA\n",
            "arcpipe.storage.s3.secret_access_key": SECRET,
            "arcpipe.server.port": "9\n",
            "somebody.else": "x",
        }
    )
    settings = load(None, environ)
    assert settings.storage.s3.access_key_id == "AKIA"
    assert settings.storage.s3.secret_access_key == SECRET
    assert settings.server.port == 9
    assert settings.source("server.port") == "credential arcpipe.server.port"
    assert SECRET not in str(list(settings.effective()))


def test_a_credential_named_after_a_setting_that_holds_a_path_is_the_file(credentials: Any) -> None:
    environ = credentials(**{"arcpipe.auth.tokens_file": "[tokens]\n"})
    settings = load(None, environ)
    assert settings.auth.tokens_file == f"{environ['CREDENTIALS_DIRECTORY']}/arcpipe.auth.tokens_file"


def test_the_environment_wins_then_credentials_then_the_file(config: Any, credentials: Any) -> None:
    """The environment wins over a credential, and a credential over the file."""
    environ = credentials(**{"arcpipe.wal.dir": "credential", "arcpipe.wal.max_size_mb": "8"})
    settings = config(in_toml(wal='dir = "file"\nmax_size_mb = 7'), {**environ, "WAL_DIR": "environment"})
    assert (settings.wal.dir, settings.wal.max_size_mb) == ("environment", 8)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "arcpipe.storage.s3.secret_key",
            SECRET,
            "credential arcpipe.storage.s3.secret_key: is not a setting; "
            "did you mean arcpipe.storage.s3.secret_access_key?",
        ),
        ("arcpipe.server.port", "http", 'credential arcpipe.server.port: server.port = "http": allowed: '),
        ("arcpipe.storage.s3.region", b"\xff", "credential arcpipe.storage.s3.region: cannot be read: "),
    ],
)
def test_a_credential_that_cannot_be_used_is_refused_by_name(
    credentials: Any, name: str, content: str | bytes, problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, credentials(**{name: content}))
    assert str(refused.value).startswith(problem)
    assert SECRET not in str(refused.value)


def test_a_credentials_directory_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY: /nonexistent cannot be read"):
        load(None, {"CREDENTIALS_DIRECTORY": "/nonexistent"})


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "True", "YES", "oN"])
def test_a_variable_says_true_in_many_ways(text: str) -> None:
    assert load(None, {"ARCPIPE_PARQUET_KEEP_NANOSECONDS": text}).parquet.keep_nanoseconds is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "False", "NO", "oFF"])
def test_a_variable_says_false_in_many_ways(text: str) -> None:
    assert load(None, {"WAL_ENABLED": text}).wal.enabled is False


def test_asking_for_a_key_that_does_not_exist_is_a_mistake_of_the_caller() -> None:
    for ask in (Settings().source, Settings().value):
        with pytest.raises(KeyError):
            ask("wal.directory")


# --- values that are refused

WHOLE, NUMBER = "a whole number from", "a number"

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("server.port", -1, f"{WHOLE} 0 to 65535"),
    ("server.port", 65536, f"{WHOLE} 0 to 65535"),
    ("server.port", "http", f"{WHOLE} 0 to 65535"),
    ("server.port", True, f"{WHOLE} 0 to 65535"),
    ("server.port", [8000], f"{WHOLE} 0 to 65535"),
    ("server.port", {"number": 8000}, f"{WHOLE} 0 to 65535"),
    ("server.workers", 257, f"{WHOLE} 0 to 256"),
    ("server.workers", 1.5, f"{WHOLE} 0 to 256"),
    ("server.host", "[::1]", "an IP address or a host name"),
    ("server.host", "127.0.0.1\n", "an IP address or a host name"),
    ("server.paths", "health", '"all", "writes", "operations"'),
    ("server.tls_client_auth", "no", '"required", "optional"'),
    ("server.trusted_proxies", "localhost", 'networks such as "10.0.0.0/8", and "unix"'),
    ("server.listeners", 8001, "a list of tables, each with an address such as"),
    ("server.listeners", ["127.0.0.1:8001"], "a list of tables, each with an address such as"),
    ("server.max_body_mb", 0, f"{WHOLE} 1 to 1024"),
    ("server.keep_alive_seconds", 0, f"{NUMBER} above 0"),
    ("server.keep_alive_seconds", float("inf"), f"{NUMBER} above 0"),
    ("server.keep_alive_seconds", float("nan"), f"{NUMBER} above 0"),
    ("server.cors_origins", "app.example", "origins such as https://app.example"),
    ("server.cors_origins", "https://app.example/", "without a path"),
    ("server.cors_origins", "https://*.example", "origins such as https://app.example"),
    ("server.cors_origins", "* https://app.example", "origins such as https://app.example"),
    ("server.cors_origins", "https://a.example\r\nSet-Cookie: a=b", "origins such as https://app.example"),
    ("server.cors_origins", "null", "origins such as https://app.example"),
    ("server.allowed_hosts", "ingest.example:8000", "without a port"),
    ("server.allowed_hosts", "http://ingest.example", "host names such as ingest.example"),
    ("auth.allow_anonymous", "maybe", "true or false"),
    ("wal.enabled", 2, "true or false"),
    ("wal.dir", "", "a path"),
    ("wal.dir", "a\0b", "a path"),
    ("wal.max_size_mb", 0, f"{WHOLE} 1 to 4096"),
    ("wal.keep_recovered_seconds", -1, f"{NUMBER} from 0"),
    ("wal.sync_mode", "sync", '"fsync", "fdatasync", "async"'),
    ("flush.max_records", 0, f"{WHOLE} 1 to"),
    ("flush.max_age_seconds", -0.5, f"{NUMBER} above 0"),
    ("parquet.compression", "brotli", '"zstd", "snappy", "gzip", "lz4", "none"'),
    ("storage.layout", "flat", '"arc", "hive"'),
    ("storage.url", "/var/lib/lake", "file:///absolute/path"),
    ("storage.url", "", "file:///absolute/path"),
    ("storage.url", "ftp://bucket/x", "s3://bucket/prefix"),
    ("storage.url", "file:/var/lib/lake", "file:///absolute/path"),
    ("storage.url", "file://var/lib/lake", "/absolute/path or ./relative/path"),
    ("storage.url", "file://", "/absolute/path or ./relative/path"),
    ("storage.url", "s3://", "a bucket"),
    ("storage.url", "s3:///prefix", "a bucket"),
    ("storage.url", "s3://bucket/a//b", "the prefix"),
    ("storage.url", "s3://bucket/../b", "the prefix"),
    ("storage.s3.endpoint_url", "localhost:9000", "http://host:port"),
    ("storage.s3.endpoint_url", "http://host:9000/?x=1", "http://host:port"),
    ("storage.s3.addressing_style", "dns", '"auto", "path", "virtual"'),
    ("storage.s3.server_side_encryption", "aes", '"", "AES256", "aws:kms"'),
    ("storage.s3.kms_key_id", "a key", "the id, alias or ARN"),
    ("storage.s3.storage_class", "GLACIER", "can be read at once"),
    ("storage.s3.storage_class", "DEEP_ARCHIVE", "can be read at once"),
    ("uploader.nice", 20, f"{WHOLE} 0 to 19"),
    ("uploader.nice", -1, f"{WHOLE} 0 to 19"),
    ("log.level", "TRACE", '"DEBUG", "INFO", "WARNING", "ERROR"'),
    ("log.format", "xml", '"text", "json"'),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD_VALUES)
def test_a_bad_value_in_the_file_is_refused_with_what_is_allowed(
    config: Any, key: str, value: Any, allowed: str
) -> None:
    if isinstance(value, dict):
        written = "{number = 8000}"
    elif isinstance(value, float):
        written = repr(value)
    else:
        written = msgspec.json.encode(value).decode()
    (line,) = problems(config, f"{key} = {written}")
    source, _, rest = line.partition(": ")
    assert source.endswith("/config.toml")
    assert rest.startswith(f"{key} = ")
    assert allowed in rest


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [(key, value, allowed) for key, value, allowed in BAD_VALUES if "\0" not in str(value)],
)
def test_a_bad_value_of_a_variable_is_refused_with_its_name(key: str, value: Any, allowed: str) -> None:
    """A bad value in the environment is refused with the name of the variable."""
    name, text = variable(key), str(value)
    with pytest.raises(ConfigError) as raised:
        load(None, {name: text})
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"environment {name}: {key} = ")
    assert allowed in line


@pytest.mark.parametrize("text", ["", " ", "five", "5 MB", "0x10", "1_000", "5.5", "null", "true"])
def test_a_variable_for_a_whole_number_takes_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^environment WAL_MAX_SIZE_MB: wal.max_size_mb = "):
        load(None, {"WAL_MAX_SIZE_MB": text})


def test_a_variable_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^environment WAL_DIR: wal.dir = .* a path"):
        load(None, {"WAL_DIR": os.fsdecode(b"/data/\xff")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (in_toml(wal='sync_mode = "fdatasink"'), 'did you mean "fdatasync"?'),
        (in_toml(log='level = "info"'), 'did you mean "INFO"?'),
        (in_toml(parquet='compression = "ZSTD"'), 'did you mean "zstd"?'),
        (in_toml(wal="max_size = 5"), "wal.max_size is not a setting; did you mean wal.max_size_mb?"),
        (in_toml(wal='sync_mod = "fsync"'), "wal.sync_mod is not a setting; did you mean wal.sync_mode?"),
        (in_toml(wal="max_records = 5"), "wal.max_records is not a setting; did you mean flush.max_records?"),
        (in_toml(server='level = "INFO"'), "server.level is not a setting; did you mean log.level?"),
        ("port = 80", "port is not a setting; did you mean server.port?"),
        (in_toml(parqet="max_file_mb = 5"), "[parqet] is not a section; did you mean [parquet]?"),
        (in_toml(s3='region = "x"'), "[s3] is not a section; did you mean [storage.s3]?"),
        (in_toml(storage__S3='region = "x"'), "[storage.S3] is not a section; did you mean [storage.s3]?"),
    ],
)
def test_a_likely_typo_in_the_file_is_answered_with_what_was_meant(config: Any, text: str, expected: str) -> None:
    (line,) = problems(config, text)
    assert line.endswith(expected)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ARCPIPE_WAL_SYNC_MOD", "ARCPIPE_WAL_SYNC_MODE"),
        ("ARCPIPE_WORKERS", "ARCPIPE_SERVER_WORKERS"),
        ("ARCPIPE_S3_REGION", "ARCPIPE_STORAGE_S3_REGION"),
        ("ARCPIPE_LOGLEVEL", "ARCPIPE_LOG_LEVEL"),
    ],
)
def test_a_likely_typo_in_a_variable_is_warned_of_with_what_was_meant(name: str, meant: str) -> None:
    settings = load(None, {name: "1"})
    assert settings.warnings == (f"environment {name}: not used, as it is not a setting; did you mean {meant}?",)
    assert list(settings.effective()) == list(Settings().effective())


def test_what_resembles_nothing_is_told_without_a_guess(config: Any) -> None:
    found = problems(config, in_toml(wal="quux = 1", telemetry="x = 1"))
    assert [line.partition(": ")[2] for line in found] == ["wal.quux is not a setting", "[telemetry] is not a section"]
    settings = load(None, {"ARCPIPE_QUUX": "1"})
    assert settings.warnings == ("environment ARCPIPE_QUUX: not used, as it is not a setting",)


@pytest.mark.parametrize("service", ["ARCPIPE", "ARCPIPE_SERVER", "ARCPIPE_OPS", "ARCPIPE_SERVER_LISTENERS"])
def test_what_kubernetes_makes_for_a_service_of_our_name_is_no_setting(service: str) -> None:
    made = service_variables(service)
    settings = load(None, {**made, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert list(settings.effective()) == list(Settings().effective())
    [warning] = settings.warnings
    assert set(made) == set(re.findall(r"ARCPIPE_\w+", warning))
    assert warning.endswith("set enableServiceLinks: false in the pod to avoid them")
    assert "10.96" not in warning


def test_a_port_set_by_the_pod_wins_over_a_service_of_that_name() -> None:
    """A port that the pod sets itself counts, though there is a service of that name."""
    settings = load(None, {**service_variables("ARCPIPE_SERVER"), "ARCPIPE_SERVER_PORT": "9000"})
    assert (settings.server.port, settings.source("server.port")) == (9000, "environment ARCPIPE_SERVER_PORT")
    with pytest.raises(ConfigError, match=r"server\.port"):  # no Service of that name: somebody has written it
        load(None, {"ARCPIPE_SERVER_PORT": "tcp://10.96.0.11:8000"})


def test_a_relative_tokens_file_counts_from_its_settings_file(tmp_path: Path) -> None:
    """A relative tokens file counts from the settings file that names it."""
    elsewhere = tmp_path / "etc" / "config.toml"
    elsewhere.parent.mkdir()
    for text, found in (
        ('tokens_file = "mine.toml"', str(tmp_path / "etc" / "mine.toml")),
        ("enabled = false", str(tmp_path / "etc" / "tokens.toml")),
        ('tokens_file = "/absolute.toml"', "/absolute.toml"),
    ):
        elsewhere.write_text(in_toml(auth=text))
        assert load(elsewhere, {}).auth.tokens_file == found
    assert load(elsewhere, {"ARCPIPE_AUTH_TOKENS_FILE": "here.toml"}).auth.tokens_file == "here.toml"
    assert load(None, {}).auth.tokens_file == "tokens.toml"


@pytest.mark.parametrize("text", ["wal = 5", "storage.s3 = 'x'"])
def test_a_value_in_place_of_a_section_is_refused(config: Any, text: str) -> None:
    (line,) = problems(config, text)
    assert "is a section, not a value" in line


def test_all_problems_are_reported_at_once_with_a_line_each(config: Any) -> None:
    found = problems(
        config,
        in_toml(server='port = "x"\nhots = "a"', wal="sync_mode = 5", parquet="compression_level = 30"),
        {"WORKERS": "many", "ARCPIPE_LOG_LEVEL": "LOUD", "ARCPIPE_NOPE": "1", "ARCPIPE_SERVER_TLS_KEY": "k"},
    )
    assert len(found) == 8
    for part in ("server.port", "hots", "wal.sync_mode", "compression_level", "WORKERS", "LOUD", "NOPE", "tls_"):
        assert any(part in line for line in found), part


def test_a_long_value_is_cut_in_the_error(config: Any) -> None:
    (line,) = problems(config, in_toml(log=f'level = "{"x" * 5000}"'))
    assert len(line) < 400


# --- files that cannot be used


def test_a_syntax_error_names_the_file_and_the_line(config: Any) -> None:
    (line,) = problems(config, "[server]\nport = 1\nhost = \n")
    assert re.search(r"/config\.toml: not valid TOML: .*line 3", line)


def test_a_key_that_is_given_twice_is_refused(config: Any) -> None:
    (line,) = problems(config, "[server]\nport = 1\nport = 2\n")
    assert re.search(r"not valid TOML: .*line 3", line)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_a_value_that_python_does_not_read_is_refused(config: Any, value: str) -> None:
    (line,) = problems(config, f"[server]\nport = {value}\n")
    assert "/config.toml: not valid TOML: " in line


def test_a_file_that_is_not_utf8_names_the_line(config: Any) -> None:
    (line,) = problems(config, b"[server]\n# caf\xe9\n")
    assert line.endswith("/config.toml: not UTF-8 text (at line 2)")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(tmp_path / "nowhere.toml", {})


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})


def test_problems_of_the_environment_are_reported_beside_an_unusable_file(config: Any) -> None:
    found = problems(config, "[server", {"WORKERS": "many", "ARCPIPE_SERVER_HOST": "0.0.0.0"})
    assert len(found) == 2  # who may write is not judged while auth.allow_anonymous is unknown


# --- what keys mean together


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.7", "::ffff:127.0.0.1", "fe80::1%eth0", "ingest.example", "127.1"]
)
def test_listening_beyond_loopback_without_auth_is_refused(config: Any, host: str) -> None:
    (line,) = problems(config, in_toml(server=f'host = "{host}"'))
    assert f'server.host = "{host}"' in line
    assert "auth.allow_anonymous" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_listening_on_loopback_needs_no_auth(config: Any, host: str) -> None:
    assert config(in_toml(server=f'host = "{host}"')).server.host == host


def test_listening_beyond_loopback_is_allowed_when_it_is_said_on_purpose(config: Any) -> None:
    for said in ("allow_anonymous = true", "enabled = true"):
        text = in_toml(server='host = "0.0.0.0"', auth=said)
        assert config(text).server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (in_toml(server="max_inflight_mb = 99"), "server.max_inflight_mb = 99: "),
        (in_toml(storage__s3=f'secret_access_key = "{SECRET}"'), "storage.s3.access_key_id is not set"),
        (in_toml(storage__s3='access_key_id = "AKIA"'), "storage.s3.secret_access_key is not set"),
        (in_toml(storage__s3=f'session_token = "{SECRET}"'), "set all three or none"),
        (in_toml(storage__s3='kms_key_id = "1"'), 'storage.s3.server_side_encryption = "aws:kms"'),
        (
            in_toml(storage__s3='kms_key_id = "1"\nserver_side_encryption = "AES256"'),
            'storage.s3.server_side_encryption = "aws:kms"',
        ),
        (in_toml(parquet='compression = "gzip"\ncompression_level = 10'), "a whole number from 1 to 9"),
        (in_toml(parquet='compression = "lz4"\ncompression_level = 13'), "a whole number from 1 to 12"),
        (in_toml(parquet='compression = "snappy"\ncompression_level = 2'), "has no levels"),
        (in_toml(parquet='compression = "none"\ncompression_level = 2'), "has no levels"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(config: Any, text: str, expected: str) -> None:
    (line,) = problems(config, text)
    assert expected in line


def test_a_store_that_is_the_wal_directory_is_refused_by_any_name(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database called node.json would be a folder there, where the node's id is, and block all uploads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    for url in ("file://./data", f"file://{tmp_path}/data/", "file://./link"):
        (line,) = problems(config, in_toml(wal='dir = "data"', storage=f'url = "{url}"'))
        assert "storage.url = " in line
        assert "it is the WAL directory" in line
    config(in_toml(wal='dir = "data/wal"', storage='url = "file://./data/lake"'), None)


def test_a_wal_directory_inside_of_the_store_is_told_and_accepted(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database of its name could make a folder `schema.json` there, and block all uploads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    for folder in ("data/wal", "link/wal/deep", str(tmp_path / "data/wal")):
        [warning] = config(in_toml(wal=f'dir = "{folder}"', storage='url = "file://./data"'), None).warnings
        assert warning.startswith(f"wal.dir = {folder} is inside of storage.url = file://./data")
    for folder in ("data2", "data-wal", "wal"):
        assert config(in_toml(wal=f'dir = "{folder}"', storage='url = "file://./data"'), None).warnings == ()
    assert config(in_toml(wal='dir = "data"', storage='url = "s3://data"'), None).warnings == ()


def test_half_a_tls_pair_is_refused(config: Any) -> None:
    found = problems(config, in_toml(server='tls_cert = "cert.pem"'))
    assert any("server.tls_key is not set: set both or neither" in line for line in found)


def test_nothing_is_said_about_a_pair_of_which_one_half_is_broken(config: Any) -> None:
    (line,) = problems(config, in_toml(parquet='compression = "gzipp"\ncompression_level = 20'))
    assert "parquet.compression = " in line


@pytest.mark.parametrize("codec", get_args(Codec))
def test_arrow_takes_every_codec_with_the_level_it_is_given(codec: str) -> None:
    parquet = Parquet(compression=codec)  # type: ignore[arg-type]
    assert codec == "none" or pa.Codec(codec, parquet.codec_level)
    assert (parquet.codec_level is not None) == (codec in {"zstd", "gzip", "lz4"})


@pytest.mark.parametrize(("codec", "highest"), [("zstd", 22), ("gzip", 9), ("lz4", 12)])
def test_the_highest_level_that_is_allowed_is_the_codecs_own(config: Any, codec: str, highest: int) -> None:
    text = in_toml(parquet=f'compression = "{codec}"\ncompression_level = {highest}')
    assert config(text).parquet.codec_level == pa.Codec.maximum_compression_level(codec) == highest


# --- parsed views


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("file://./data/lake", FileLocation(Path("data/lake"))),
        ("file://../lake", FileLocation(Path("../lake"))),
        ("file:///var/lib/x", FileLocation(Path("/var/lib/x"))),
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        ("s3://my.bucket-1/a/b/", S3Location("my.bucket-1", "a/b")),
    ],
)
def test_the_storage_url_is_parsed(url: str, location: object) -> None:
    found = Storage(url=url).location
    assert found == location
    assert type(found) is type(location)


def test_zero_workers_means_one_per_core_that_the_process_may_run_on() -> None:
    assert Server(workers=3).worker_count() == 3
    assert Server(workers=0).worker_count() == len(os.sched_getaffinity(0))
    pinned = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from arcpipe.config.settings import Server; print(Server().worker_count())"
    )
    out = subprocess.run([sys.executable, "-c", pinned], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "1\n"


# --- credentials stay unsaid


@pytest.mark.parametrize(
    "text",
    [
        in_toml(storage__s3=f'secret_access_key = "{SECRET}\\n"'),
        in_toml(storage__s3=f'secret_access_key = ["{SECRET}"]'),
        in_toml(storage__s3=f'secret_access_key = "{SECRET}"'),
        in_toml(storage__s3=f'access_key_id = "{SECRET}"'),
        in_toml(storage__s3=f'session_token = "{SECRET}"'),
        in_toml(storage__s3=f'secret_acces_key = "{SECRET}"'),
        in_toml(storage__s4=f'secret_access_key = "{SECRET}"'),
        in_toml(storage=f'url = "s3://AKIA:{SECRET}@bucket/prefix"'),
        in_toml(storage__s3=f'endpoint_url = "http://user:{SECRET}@host:9000"'),
        in_toml(storage__s3=f'secret_access_key = "{SECRET}'),
    ],
)
def test_an_error_never_shows_a_credential(config: Any, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(text)
    assert SECRET not in str(raised.value)


def test_a_mistyped_variable_with_a_credential_is_told_without_its_value() -> None:
    [warning] = load(None, {"ARCPIPE_S3_SECRET_ACCESS_KEY": SECRET}).warnings
    assert "did you mean ARCPIPE_STORAGE_S3_SECRET_ACCESS_KEY" in warning
    assert SECRET not in warning


def test_effective_values_and_reprs_mask_credentials() -> None:
    s3 = StorageS3(access_key_id="AKIAEXAMPLE", secret_access_key=SECRET, session_token=SECRET, region="eu-central-1")
    settings = Settings(storage=Storage(s3=s3))
    shown = {key: value for key, value, _ in settings.effective()}
    for key in ("storage.s3.access_key_id", "storage.s3.secret_access_key", "storage.s3.session_token"):
        assert shown[key] == "********"
    assert DEFAULTS["storage.s3.secret_access_key"] == ""
    assert SECRET not in repr(settings)
    assert "AKIAEXAMPLE" not in repr(settings)
    assert "region='eu-central-1'" in repr(settings)
    assert settings.value("storage.s3.secret_access_key") == SECRET


def test_config_toml_is_what_tomllib_reads_and_nothing_else() -> None:
    document = tomllib.loads((ROOT / "config.toml").read_text())
    assert list(document) == [
        *("server", "auth", "limits", "ingest", "idempotency", "remote_write", "otlp", "wal", "flush", "parquet"),
        *("schema", "storage", "uploader", "compaction", "retention", "tables", "shutdown", "log", "access_log"),
    ]
