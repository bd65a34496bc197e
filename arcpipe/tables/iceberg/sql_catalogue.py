"""Iceberg's SQL catalogue, in SQLite or PostgreSQL: durable, and at a cost that grows little with the table's history.

A commit of pyiceberg's own parses a table's metadata twice and copies it deeply, snapshot by snapshot. Metadata files
never change, so what was parsed once is kept, and what was written is known without parsing it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.io import FileIO
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import (
    TableRequirement,
    TableUpdate,
    _apply_table_update,
    _TableMetadataUpdateContext,
    _update_table_metadata_log,
)
from pyiceberg.typedef import EMPTY_DICT, Identifier, Properties
from sqlalchemy import event, insert, make_url, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from arcpipe.disk import Disk
from arcpipe.tables.iceberg.shared_io import SharedFiles

_CONNECT_SECONDS: Final = 10
_STATEMENT_MS: Final = 30_000
_BUSY_SECONDS: Final = 15  # a reader of the SQLite catalogue may hold it so long

# Snapshots of all kept metadata together: some 2 KB each. Of a table with more, nothing is kept.
_KEPT_SNAPSHOTS: Final = 10_000


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite catalogue."""
    return f"sqlite:///{path}"


def postgresql_uri(uri: str, password: str) -> str:
    """Return the address of a PostgreSQL catalogue as SQLAlchemy takes it, with time limits."""
    url = make_url(uri).set(drivername="postgresql+psycopg")
    if password:
        url = url.set(password=password)
    url = url.update_query_dict(
        {"connect_timeout": str(_CONNECT_SECONDS), "options": f"-c statement_timeout={_STATEMENT_MS}"}
    )
    return url.render_as_string(hide_password=False)


class MetadataCache:
    """The metadata of the tables that were used last, by its location. Metadata at a location never changes."""

    def __init__(self, most_snapshots: int = _KEPT_SNAPSHOTS) -> None:
        self._most = most_snapshots
        self._kept: OrderedDict[str, TableMetadata] = OrderedDict()
        self._snapshots = 0

    def get(self, location: str) -> TableMetadata | None:
        found = self._kept.get(location)
        if found is not None:
            self._kept.move_to_end(location)
        return found

    def put(self, location: str, metadata: TableMetadata, instead_of: str = "") -> None:
        self.drop(instead_of)
        self.drop(location)
        self._kept[location] = metadata
        self._snapshots += _weight(metadata)
        while self._snapshots > self._most and self._kept:
            self._snapshots -= _weight(self._kept.popitem(last=False)[1])

    def drop(self, location: str) -> None:
        if (gone := self._kept.pop(location, None)) is not None:
            self._snapshots -= _weight(gone)


def _weight(metadata: TableMetadata) -> int:
    return len(metadata.snapshots) + 5  # the rest of small metadata counts, too


class SQLCatalogue(SqlCatalog):
    """The catalogue. One thread at a time may use it."""

    def __init__(self, name: str, files: SharedFiles, kept: float = 1.0, **properties: str) -> None:
        self._files = files
        self._cache = MetadataCache(int(_KEPT_SNAPSHOTS * kept))
        super().__init__(name, **properties)

    def _init_catalog(self) -> None:
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
        super()._init_catalog()
        if self.engine.dialect.name == "sqlite" and self.engine.url.database:
            Disk().sync_directory(os.path.dirname(self.engine.url.database) or ".")

    def _load_file_io(self, properties: Properties = EMPTY_DICT, location: str | None = None) -> FileIO:
        return self._files.of(location or "", {**self.properties, **properties})

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = orm_table.metadata_location
        if not location:
            raise NoSuchTableError(f"{orm_table.table_namespace}.{orm_table.table_name} has no metadata")
        return Table(
            identifier=(*Catalog.identifier_to_tuple(orm_table.table_namespace), orm_table.table_name),
            metadata=self._metadata(location),
            metadata_location=location,
            io=self._load_file_io(location=location),
            catalog=self,
        )

    def _metadata(self, location: str) -> TableMetadata:
        metadata = self._cache.get(location)
        if metadata is None:
            metadata = FromInputFile.table_metadata(self._load_file_io(location=location).new_input(location))
            self._cache.put(location, metadata)
        return metadata

    def location(self, identifier: tuple[str, str]) -> str | None:
        """Return the location of a table's metadata; None if there is no such table."""
        with Session(self.engine) as session:
            found: str | None = session.scalar(
                select(IcebergTables.metadata_location).where(
                    IcebergTables.catalog_name == self.name,
                    IcebergTables.table_namespace == identifier[0],
                    IcebergTables.table_name == identifier[1],
                )
            )
        return found

    def create_table(self, identifier: str | Identifier, *arguments: Any, **options: Any) -> Table:
        """Create a table, whose first metadata is written as all later ones are: pyiceberg's own writer syncs nothing.

        Raises:
            NoSuchNamespaceError: its namespace is not there.
            TableAlreadyExistsError: it is there; nothing happened.
        """
        namespace = Catalog.namespace_from(identifier)
        if not self.namespace_exists(namespace):
            raise NoSuchNamespaceError(f"Namespace does not exist: {namespace}")
        staged = self._create_staged_table(identifier, *arguments, **options)
        self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
        name = Catalog.namespace_to_string(namespace), Catalog.table_name_from(identifier)
        with Session(self.engine) as session:
            try:
                row = self._create_table_row(*name, staged.metadata_location)
                session.execute(insert(IcebergTables).values(**row))
                session.commit()
            except IntegrityError as error:
                raise TableAlreadyExistsError(f"Table {'.'.join(name)} already exists") from error
        return self.load_table(identifier)

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        """Change a table if it is as the requirements say, in one attempt.

        Raises:
            CommitFailedException: it is not, or somebody else changed it meanwhile; nothing happened.
            NoSuchTableError: there is no such table.
        """
        current = self.load_table(table.name())
        for requirement in requirements:
            requirement.validate(current.metadata)
        metadata = _updated(current, updates)
        version = self._parse_metadata_version(current.metadata_location) + 1
        location = load_location_provider(metadata.location, metadata.properties).new_table_metadata_file_location(
            version
        )
        self._write_metadata(metadata, self._load_file_io(location=location), location)
        self._swap(current, location)
        self._cache.put(location, metadata, instead_of=current.metadata_location)
        return CommitTableResponse.model_construct(metadata=metadata, metadata_location=location)

    def _swap(self, current: Table, location: str) -> None:
        """Let the table have its new metadata, if it still has the one that the new one was made of."""
        *namespace, name = current.name()
        with Session(self.engine) as session:
            swapped: Any = session.execute(
                update(IcebergTables)
                .where(
                    IcebergTables.catalog_name == self.name,
                    IcebergTables.table_namespace == Catalog.namespace_to_string(tuple(namespace)),
                    IcebergTables.table_name == name,
                    IcebergTables.metadata_location == current.metadata_location,
                )
                .values(metadata_location=location, previous_metadata_location=current.metadata_location)
            )
            if swapped.rowcount != 1:
                raise CommitFailedException("the table has other metadata by now")
            session.commit()

    def close(self) -> None:
        self.engine.dispose()


def _updated(current: Table, updates: tuple[TableUpdate, ...]) -> TableMetadata:
    """Apply updates as pyiceberg does, but for the deep copy: metadata is never changed in place here."""
    context = _TableMetadataUpdateContext()
    metadata = current.metadata
    for one in updates:
        metadata = _apply_table_update(one, metadata, context)
    return _update_table_metadata_log(metadata, current.metadata_location, current.metadata.last_updated_ms)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # EXTRA syncs the directory, too, so that no power cut brings a commit's journal back after its answer.
    cursor.execute("PRAGMA synchronous = EXTRA")
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    cursor.close()
