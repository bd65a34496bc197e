"""Checks of `[tables.iceberg]` in combination: which catalogue needs, and takes, what."""

from __future__ import annotations

from collections.abc import Iterator

from arcpipe.config.problem import Problem
from arcpipe.config.settings import FileLocation, S3Location, Settings, parse_storage_url
from arcpipe.errors import ConfigError

_SECTION = "tables.iceberg."
_WAREHOUSES = ("s3://", "gs://", "abfss://", "file:///")
# Keys that one catalogue alone takes.
_OF_ONE = {
    "token": "rest",
    "credential": "rest",
    "scope": "rest",
    "oauth2_server_uri": "rest",
    "password": "postgresql",
}


def problems_of_iceberg(settings: Settings) -> Iterator[Problem]:
    """Find the problems of Iceberg's settings in combination."""
    options = settings.tables.iceberg
    if settings.tables.format != "iceberg":
        return
    with_keys = ("tables.format", f"{_SECTION}catalog")
    if reason := _of_uri(options.catalog, options.uri):
        yield Problem(f"{_SECTION}uri", reason, with_keys)
    for name, catalog in _OF_ONE.items():
        if getattr(options, name) and options.catalog != catalog:
            yield Problem(f"{_SECTION}{name}", f'it is of tables.iceberg.catalog = "{catalog}" alone', with_keys)
    if options.catalog == "rest":
        return
    if options.warehouse and not options.warehouse.startswith(_WAREHOUSES):
        reason = (
            "allowed with this catalogue: s3://bucket/prefix, gs://bucket/prefix, abfss://container@account…/prefix, "
            "file:///absolute/path, or empty: _iceberg in the store"
        )
        yield Problem(f"{_SECTION}warehouse", reason, with_keys)
    try:
        location = parse_storage_url(settings.storage.url)
    except ConfigError:
        return
    is_local = isinstance(location, FileLocation) and (not options.warehouse or options.warehouse.startswith("file:"))
    if options.catalog == "sqlite" and not is_local:
        reason = (
            "the SQLite catalogue is for one node with a local lake, and no other node would see its tables: "
            'set tables.iceberg.catalog to "rest", "postgresql" or "glue"'
        )
        yield Problem(f"{_SECTION}catalog", reason, ("tables.format", "storage.url", f"{_SECTION}warehouse"))
    if options.catalog == "glue" and not isinstance(location, S3Location):
        reason = "Glue knows tables in S3 alone: set storage.url to s3://bucket/prefix, or take another catalogue"
        yield Problem(f"{_SECTION}catalog", reason, ("tables.format", "storage.url"))


def _of_uri(catalog: str, uri: str) -> str:
    """Return what is wrong with the address of a catalogue; empty if nothing is."""
    match catalog:
        case "sqlite" if uri:
            return "leave it empty: the SQLite catalogue is `tables/iceberg.db` in wal.dir"
        case "rest" if not uri.startswith(("http://", "https://")):
            return "name the REST catalogue: http://host:port/path or https://…"
        case "postgresql" if not uri.startswith("postgresql://"):
            return "name the database: postgresql://user@host:port/database"
        case "glue" if uri and not uri.startswith(("http://", "https://")):
            return "leave it empty for AWS, or name another endpoint: http://… or https://…"
    return ""
