"""Loading of settings: defaults <- TOML file <- credentials <- environment, all checked before anything starts.

`load` remembers the source of each value, and reports all problems at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import Struct

from arcpipe.config import variables
from arcpipe.config.checks import problems_of, warnings_of
from arcpipe.config.column_types import ColumnTypes, parse_types
from arcpipe.config.dedup_words import DedupWords, parse_dedup
from arcpipe.config.listeners import PARSERS
from arcpipe.config.name_lists import Names, parse_names
from arcpipe.config.retention_days import RetentionDays, parse_retention
from arcpipe.config.settings import PASTED, Settings, fields_of, keys, printable, sections
from arcpipe.config.spelling import nearest
from arcpipe.errors import ConfigError


def load(config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Merge defaults, the TOML file (if any), a service manager's credentials and the environment; later ones win.

    Raises:
        ConfigError: one line per problem, with its source, the key, the value and the allowed values.
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
        named = values.get(_TOKENS_FILE, keys()[_TOKENS_FILE].default)
        values[_TOKENS_FILE] = str(config_file.parent / named)
    warnings = tuple(variables.warnings_of(environ, _environment_names()))
    settings: Settings = _assemble(Settings, "", {**values, "warnings": warnings}, sources)
    # A combination is checked only if all values of it are known.
    if file_was_read:
        for check in problems_of(settings):
            if refused.isdisjoint((check.key, *check.with_keys)):
                value = settings.value(check.key)
                problems.append(_problem(settings.source(check.key), check.key, value, check.reason))
    if problems:
        raise ConfigError("\n".join((*problems, *warnings)))  # a mistyped variable may be the reason
    return msgspec.structs.replace(settings, warnings=(*warnings, *warnings_of(settings)))


@cache
def _environment_names() -> dict[str, str]:
    """Return the dotted key of each variable. Later variables win, so Arc's own names come before the ARCPIPE_ ones."""
    return {
        "WAL_ENABLED": "wal.enabled",
        "WAL_DIR": "wal.dir",
        "WAL_SYNC_MODE": "wal.sync_mode",
        "WAL_MAX_SIZE_MB": "wal.max_size_mb",
        "WAL_MAX_AGE_SECONDS": "wal.max_age_seconds",
        "WRITE_BUFFER_SIZE": "flush.max_records",
        "WRITE_BUFFER_AGE": "flush.max_age_seconds",
        "WORKERS": "server.workers",
        **{variables.PREFIX + key.upper().replace(".", "_"): key for key in keys()},
    }


# A relative path counts from the settings file, so that `arcpipe token` finds the server's file from any directory.
_TOKENS_FILE = "auth.tokens_file"


def asked_for(key: str, config_file: Path | None, environ: Mapping[str, str]) -> Any:
    """Return the unchecked value of a key, even if other settings are wrong; None if none was given."""
    given: list[_Given] = []
    with contextlib.suppress(ConfigError):
        given += _from_table(_read_toml(config_file) if config_file else {}, "", "", [])
    given += _from_credentials(environ, [])
    given += _from_environment(environ)
    return next((one.value for one in reversed(given) if one.key == key), None)


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _from_table(table: dict[str, Any], prefix: str, source: str, problems: list[str]) -> Iterator[_Given]:
    for name, value in table.items():
        key = prefix + name
        if key in keys():
            yield _Given(key, value, source)
        elif key in sections():
            if isinstance(value, dict):
                yield from _from_table(value, f"{key}.", source, problems)
            else:
                problems.append(f"{source}: {key} is a section, not a value: write [{key}] and its keys")
        # The value stays unsaid below: under a misspelled name it may be a credential.
        elif isinstance(value, dict):
            meant = nearest(key, sections())
            problems.append(f"{source}: [{key}] is not a section" + (meant and f"; did you mean [{meant}]?"))
        else:
            meant = nearest(key, keys())
            problems.append(f"{source}: {key} is not a setting" + (meant and f"; did you mean {meant}?"))


_CREDENTIAL_PREFIX = "arcpipe."
# For these keys the value is the path of the credential's file; for all others it is the content.
_PATHS_OF_SECRETS = frozenset({"auth.tokens_file", "server.tls_cert", "server.tls_key", "server.tls_client_ca"})


def _from_credentials(environ: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    """Return the values of files `arcpipe.{key}` in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), LoadCredential=)."""
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
        if key not in keys():
            meant = nearest(key, keys())
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


_PARSERS: Final[dict[Any, Callable[[Any, bool], Any]]] = {  # by type
    **PARSERS,
    ColumnTypes: parse_types,
    DedupWords: parse_dedup,
    Names: parse_names,
    RetentionDays: parse_retention,
}


def _convert(given: _Given) -> Any:
    """Convert a value to the key's type.

    Raises:
        ValueError: the text says what is allowed.
    """
    kind = keys()[given.key].type
    value = given.value
    if given.key in _PATHS_OF_SECRETS and isinstance(value, str) and PASTED.search(value):
        raise ValueError("allowed: the path of a file, and this is the content of one")
    if kind in _PARSERS:
        return _PARSERS[kind](value, given.is_text)
    if given.is_text and kind is bool:
        value = _BOOLEANS.get(value.lower(), value)
    try:
        # Lenient for text ("5" is 5), but a boolean must be in the table above.
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
    shown = json.dumps(printable(key, value), default=str)
    if len(shown) > 100:
        shown = shown[:97] + "..."
    return f"{source}: {key} = {shown}: {reason}"


def _assemble(section: type[Struct], prefix: str, values: dict[str, Any], sources: dict[str, str]) -> Any:
    arguments: dict[str, Any] = {}
    for field in fields_of(section):
        key = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            arguments[field.name] = _assemble(field.type, f"{key}.", values, sources)
        elif key in values:
            arguments[field.name] = values[key]
    if section is Settings:
        arguments["sources"] = sources
    return section(**arguments)
