"""The sections `[tables]`, `[tables.iceberg]` and `[tables.delta]`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from arcpipe.config.value_types import Seconds, SizeMB, Text

TableFormatName = Literal["none", "iceberg", "delta"]
Catalog = Literal["sqlite", "rest", "postgresql", "glue"]

NamespacePrefix = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9_]{0,64}\Z",
        description="up to 64 lower-case letters, digits and underscores, which begin the name of each namespace",
    ),
]
CatalogURI = Annotated[
    str,
    Meta(
        pattern=r"^((https?|postgresql)://\S+)?\Z",
        description="empty, http://host:port/path or https://…, or postgresql://user@host:port/database",
    ),
]
WarehouseText = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00-\x20\x7f\ud800-\udfff]*\Z",
        description="empty, the name that a REST catalogue gives its warehouse, or the address of a folder in a store",
    ),
]


class TablesIceberg(Struct, frozen=True, kw_only=True):
    """`[tables.iceberg]`: the catalogue, and how tables are made."""

    catalog: Catalog = "sqlite"
    # rest: the catalogue's address. postgresql: the database's. glue: another endpoint than that of AWS. sqlite: empty.
    uri: CatalogURI = ""
    # rest: as the catalogue calls it. Else where the metadata goes; empty is `_iceberg` in the store.
    warehouse: WarehouseText = ""
    partition: Literal["day", "hour"] = "day"
    namespace_prefix: NamespacePrefix = ""
    # rest: a bearer token, or an OAuth2 client (id:secret) with its scope and another token endpoint.
    token: Text = ""
    credential: Text = ""
    scope: Text = ""
    oauth2_server_uri: CatalogURI = ""
    # postgresql: so that it does not stand in the URI.
    password: Text = ""

    def __repr__(self) -> str:
        """Return the settings without credentials, because tracebacks and logs contain such texts."""
        return f"TablesIceberg(catalog={self.catalog!r}, partition={self.partition!r})"


class TablesDelta(Struct, frozen=True, kw_only=True):
    """`[tables.delta]`: how tables are made."""


class Tables(Struct, frozen=True, kw_only=True):
    """`[tables]`: what is uploaded becomes part of tables."""

    format: TableFormatName = "none"
    commit_interval_seconds: Seconds = 60.0
    max_uncommitted_mb: SizeMB = 102_400
    # How long a table's earlier states stay readable: Iceberg's snapshots, Delta's log.
    history_hours: Annotated[int, Meta(ge=1, le=87_600)] = 12
    iceberg: TablesIceberg = TablesIceberg()
    delta: TablesDelta = TablesDelta()


SECRETS: Final = frozenset(
    {"tables.iceberg.token", "tables.iceberg.credential", "tables.iceberg.password"},
)
"""Dotted keys whose values are never shown."""
