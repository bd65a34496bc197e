"""The catalogue of the settings: which table is where, and one attempt to change one.

    catalogue = Catalogue(settings.tables.iceberg, settings.storage, settings.wal.dir)
    loaded = catalogue.load(("default", "cpu"))         # None: there is no such table
    catalogue.commit(loaded, requirements, updates)     # Conflict, Unavailable or Refused

It connects at its first use, and again after it was unreachable.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchNamespaceError, NoSuchTableError
from pyiceberg.io import FileIO
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.sorting import SortOrder
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.utils.properties import property_as_bool

from arcpipe.config.settings import CloudLocation, FileLocation, Storage
from arcpipe.config.settings_tables import TablesIceberg
from arcpipe.disk import Disk
from arcpipe.tables.base import Refused, TableError, TableName
from arcpipe.tables.iceberg import age, names
from arcpipe.tables.iceberg.errors import translated
from arcpipe.tables.iceberg.file_io import path_of
from arcpipe.tables.iceberg.shared_io import SharedFiles, s3_properties
from arcpipe.tables.schema import shown

log = logging.getLogger(__name__)

CATALOG_NAME: Final = "arcpipe"
"""The name by which other programs have to open an SQL catalogue, whose rows have it."""
METADATA_FOLDER: Final = "_iceberg"
"""In the store. Readers of Parquet files pass over names that begin so, and so does arcpipe."""


def store_uri(storage: Storage) -> str:
    """Return the absolute URI of the store, without a slash at its end. Data files are `{store}/{key}`."""
    location = storage.location
    if isinstance(location, FileLocation):
        return f"file://{os.path.abspath(location.path)}"
    if isinstance(location, CloudLocation) and location.scheme == "az":
        from arcpipe.tables.iceberg.cloud_io import azure_uri

        return azure_uri(location.bucket, location.prefix)
    scheme = location.scheme if isinstance(location, CloudLocation) else "s3"
    return f"{scheme}://{location.bucket}/{location.prefix}".rstrip("/")


class Catalogue:
    """The catalogue. One thread at a time may use it."""

    def __init__(self, options: TablesIceberg, storage: Storage, wal_dir: str, kept: float = 1.0) -> None:
        """Make ready; nothing is read.

        Args:
            kept: the part of the bounds of what is kept in memory.
        """
        self._kept = kept
        self._options = options
        self._storage = storage
        self._directory = Path(os.path.abspath(wal_dir)) / "tables"
        self._files = SharedFiles()
        self._connected: Catalog | None = None
        self._namespaces: set[str] = set()  # those that are there
        self.is_sqlite = options.catalog == "sqlite"
        # Of a REST catalogue the server chooses where metadata goes.
        self.warehouse = "" if options.catalog == "rest" else self._warehouse()

    def _warehouse(self) -> str:
        return self._options.warehouse.rstrip("/") or f"{store_uri(self._storage)}/{METADATA_FOLDER}"

    def identifier(self, table: TableName) -> tuple[str, str]:
        """Return namespace and name of a table in the catalogue."""
        is_narrow = self._options.catalog == "glue"
        namespace, name = (names.encode(one, narrow=is_narrow) for one in table)
        return f"{self._options.namespace_prefix}{namespace}", name

    def table_of(self, namespace: str, name: str) -> TableName:
        """Return the table by its name in the catalogue, which is enough if the name was not cut."""
        return names.decode(namespace.removeprefix(self._options.namespace_prefix)), names.decode(name)

    # Tables.

    def load(self, table: TableName, *, all_snapshots: bool = False) -> Table | None:
        """Load a table fresh; None if there is no such table.

        Args:
            all_snapshots: also those that no branch or tag refers to.
        """
        with self._doing(f"cannot read {shown(table)}") as catalog:
            if self.is_sqlite:
                age.require_newest(table, self.place, partial(catalog.location, self.identifier(table)))
            whole = catalog.all_snapshots() if all_snapshots and hasattr(catalog, "all_snapshots") else nullcontext()
            try:
                with whole:
                    found: Table = catalog.load_table(self.identifier(table))
                    return found
            except (NoSuchTableError, NoSuchNamespaceError):
                return None

    def create(
        self, table: TableName, schema: Schema, spec: PartitionSpec, order: SortOrder, properties: dict[str, str]
    ) -> Table:
        """Make a table without rows.

        Raises:
            Conflict: somebody else made it first.
        """
        namespace, name = self.identifier(table)
        with self._doing(f"cannot create {shown(table)}") as catalog:
            self._ensure_namespace(catalog, namespace)
            try:
                made: Table = catalog.create_table(
                    (namespace, name),
                    schema,
                    location=f"{self.warehouse}/{namespace}/{name}" if self.warehouse else None,
                    partition_spec=spec,
                    sort_order=order,
                    properties=properties,
                )
                return made
            except NoSuchNamespaceError:
                self._namespaces.discard(namespace)
                raise

    def _ensure_namespace(self, catalog: Catalog, namespace: str) -> None:
        if namespace in self._namespaces:
            return
        if not catalog.namespace_exists((namespace,)):
            if self.is_sqlite:
                self._require_no_lost_catalogue(namespace)
            try:
                catalog.create_namespace((namespace,))
            except Exception as error:  # of two at once, some catalogues answer the second with a fault of the server
                if not isinstance(error, NamespaceAlreadyExistsError) and not catalog.namespace_exists((namespace,)):
                    raise
                log.debug("somebody else made the namespace %s: %s", namespace, error)
        self._namespaces.add(namespace)

    def _require_no_lost_catalogue(self, namespace: str) -> None:
        """Refuse to begin anew where tables are that a lost catalogue knew: their rows would be in no table."""
        folder = Path(path_of(f"{self.warehouse}/{namespace}"))
        if folder.is_dir() and any(folder.glob("*/metadata/*.metadata.json")):
            raise Refused(
                f"{folder} has tables that the catalogue {self._directory / 'iceberg.db'} does not know: was that "
                "file lost? Restore it, or register the tables as docs/tables.md tells, or move the folder away"
            )

    def marker_left_behind(self, table: TableName, marker: str) -> int | None:
        """Return the marker that a local store tells of a table which the SQLite catalogue does not know."""
        if not self.is_sqlite:
            return None
        namespace, name = self.identifier(table)
        return age.marker_left_behind(path_of(f"{self.warehouse}/{namespace}/{name}/metadata"), marker)

    def commit(self, loaded: Table, requirements: list[TableRequirement], updates: list[TableUpdate]) -> Any:
        """Try once to change a table.

        Raises:
            Conflict: it is not as the requirements say. Nothing happened, unless an answer was lost below.
            Unavailable: nothing happened, or all of it.
        """
        with self._doing(f"cannot commit to {'.'.join(loaded.name())}") as catalog:
            answer = catalog.commit_table(loaded, tuple(requirements), tuple(updates))
        if self._options.catalog != "rest":  # the server does it
            _delete_earlier_metadata(loaded, answer.metadata)
        return answer

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield namespace and name of each table in the namespaces that may be arcpipe's."""
        with self._doing("cannot list the tables") as catalog:
            found = sorted({namespace[0] for namespace in catalog.list_namespaces() if len(namespace) == 1})
        for namespace in found:
            if namespace.startswith(self._options.namespace_prefix):
                with self._doing(f"cannot list the tables of {namespace}") as catalog:
                    try:
                        tables = sorted(catalog.list_tables((namespace,)))
                    except NoSuchNamespaceError:
                        continue
                for identifier in tables:
                    yield namespace, identifier[-1]

    def load_named(self, namespace: str, name: str) -> Table | None:
        """Load a table by its name in the catalogue."""
        with self._doing(f"cannot read {namespace}.{name}") as catalog:
            try:
                found: Table = catalog.load_table((namespace, name))
                return found
            except (NoSuchTableError, NoSuchNamespaceError):
                return None

    # The start.

    def check(self) -> None:
        """Prove that the catalogue answers, and that metadata can be written, read and deleted."""
        with self._doing(f"the catalogue {self.place} does not work") as catalog:
            catalog.list_namespaces()
            if self.is_sqlite:
                for namespace, name in self.names():
                    find = partial(catalog.location, (namespace, name))
                    age.require_newest((namespace, name), self.place, find)
        if self.warehouse:
            location = f"{self.warehouse}/.probe-{uuid.uuid4().hex}"
            with translated(f"cannot write to tables.iceberg.warehouse, {self.warehouse}"):
                _probe(self.files(location), location)

    @property
    def place(self) -> str:
        """Name the catalogue in a text, without secrets."""
        match self._options.catalog:
            case "sqlite":
                return f"in {self._directory / 'iceberg.db'}"
            case "glue":
                return f"AWS Glue at {self._options.uri or 'AWS'}"
            case _:
                return f"at {self._options.uri.rpartition('@')[2]}"

    def files(self, location: str) -> FileIO:
        """Return what reads and writes a file of the warehouse."""
        return self._files.of(location, s3_properties(self._storage.s3))

    def close(self) -> None:
        catalog, self._connected = self._connected, None
        if catalog is not None:
            catalog.close()

    @contextmanager
    def _doing(self, what: str) -> Iterator[Any]:
        """Lend the catalogue; errors become those of `tables.base`."""
        with translated(what):
            if self._connected is None:
                self._connected = self._connect()
            yield self._connected

    def _connect(self) -> Catalog:
        # Imported here, so that a process pays only for the catalogue that it uses.
        options, s3 = self._options, s3_properties(self._storage.s3)
        match options.catalog:
            case "sqlite":
                from arcpipe.tables.iceberg.sql_catalogue import SQLCatalogue, sqlite_uri

                if not self._directory.is_dir():
                    Disk().make_directory(str(self._directory))
                    Disk().sync_directory(str(self._directory.parent))
                uri = sqlite_uri(self._directory / "iceberg.db")
                return SQLCatalogue(CATALOG_NAME, self._files, self._kept, **s3, uri=uri, warehouse=self.warehouse)
            case "postgresql":
                from arcpipe.tables.iceberg.sql_catalogue import SQLCatalogue, postgresql_uri

                uri = postgresql_uri(options.uri, options.password)
                return SQLCatalogue(
                    CATALOG_NAME, self._files, self._kept, **s3, uri=uri, warehouse=self.warehouse, pool_pre_ping="true"
                )
            case "glue":
                from arcpipe.tables.iceberg.glue_catalogue import GlueCatalogue, glue_properties

                of_glue = glue_properties(self._storage.s3, options.uri)
                return GlueCatalogue(CATALOG_NAME, self._files, **s3, **of_glue, warehouse=self.warehouse)
            case "rest":
                from arcpipe.tables.iceberg.rest_catalogue import RESTCatalogue

                return RESTCatalogue(CATALOG_NAME, self._files, **s3, **_rest_properties(options))


def _rest_properties(options: TablesIceberg) -> dict[str, str]:
    found = {
        "uri": options.uri,
        "warehouse": options.warehouse,
        "token": options.token,
        "credential": options.credential,
        "scope": options.scope,
        "oauth2-server-uri": options.oauth2_server_uri,
    }
    return {key: value for key, value in found.items() if value}


def _delete_earlier_metadata(before: Table, now: TableMetadata) -> None:
    """Delete the metadata files that the table's log had and has no more, as its properties want it.

    One that cannot be deleted is found by the table's upkeep.
    """
    if property_as_bool(now.properties, TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED, False):
        logged = {one.metadata_file for one in now.metadata_log}
        for one in before.metadata.metadata_log:
            if one.metadata_file not in logged:
                with suppress(OSError):
                    before.io.delete(one.metadata_file)


def _probe(files: FileIO, location: str) -> None:
    """Write, read and delete a file.

    Raises:
        TableError: it reads otherwise than it was written.
    """
    content = b"arcpipe tries whether it may write here\n"
    with files.new_output(location).create(overwrite=True) as stream:
        stream.write(content)
    with files.new_input(location).open() as stream:
        found = stream.read()
    files.delete(location)
    if bytes(found) != content:
        raise TableError(f"{location} was written, and reads otherwise")
