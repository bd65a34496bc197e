"""Metadata files in Google's and Azure's stores, through obstore, as `arcpipe.storage.cloud` has it for data files.

Files are small: each is one request, and is in memory meanwhile. Azure's locations are those of Iceberg's other
implementations: `abfss://container@account.dfs.core.windows.net/path`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as refusals
from obstore.store import AzureStore, GCSStore
from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.typedef import EMPTY_DICT, Properties

from arcpipe.storage import cloud_errors
from arcpipe.storage.cloud_environment import azure_account, is_without_tls
from arcpipe.tables.iceberg.file_io import ObjectInput, ObjectOutput

_CONNECT_SECONDS: Final = 10
_REQUEST_SECONDS: Final = 30
_RETRIES: Final = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}
_DENIED: Final = (refusals.PermissionDeniedError, refusals.UnauthenticatedError)


class Place(NamedTuple):
    """Where an object is."""

    scheme: str
    bucket: str  # of Azure: the container
    account: str  # of Azure
    key: str


class CloudFileIO(FileIO):
    """Files of Google's and Azure's stores. Several threads may use it."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._clients: dict[tuple[str, str, str], Any] = {}  # of a few buckets
        self._lock = threading.Lock()

    def new_input(self, location: str) -> ObjectInput:
        return ObjectInput(location, self)

    def new_output(self, location: str) -> ObjectOutput:
        return ObjectOutput(location, self)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        with self._at(location if isinstance(location, str) else location.location) as (client, key):
            obstore.delete(client, key)

    def read(self, location: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""
        with self._at(location) as (client, key):
            return bytes(obstore.get(client, key).bytes())

    def write(self, location: str, data: bytes) -> None:
        """Put an object."""
        with self._at(location) as (client, key):
            obstore.put(client, key, data, use_multipart=False)

    def listed(self, folder: str) -> list[tuple[str, float]]:
        """List the objects of a folder, without those of its folders: names, and seconds since the epoch."""
        with self._at(folder.rstrip("/")) as (client, key):
            found = obstore.list_with_delimiter(client, f"{key}/")["objects"]
            return [(one["path"].rpartition("/")[2], one["last_modified"].timestamp()) for one in found]

    def size(self, location: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""
        with self._at(location) as (client, key):
            return int(obstore.head(client, key)["size"])

    @contextmanager
    def _at(self, location: str) -> Iterator[tuple[Any, str]]:
        """Lend a client and the key. Errors become those of other implementations of FileIO: OSError and its kinds."""
        place = place_of(location)
        try:
            yield self._client(place), place.key
        except cloud_errors.MISSING as error:
            raise FileNotFoundError(f"{location}: there is no such object or bucket") from error
        except _DENIED as error:
            raise PermissionError(f"{location}: {cloud_errors.reason_of(error)}") from error
        except (refusals.BaseError, OSError) as error:
            raise OSError(f"{location}: {cloud_errors.reason_of(error)}") from error

    def _client(self, place: Place) -> Any:
        name = (place.scheme, place.bucket, place.account)
        with self._lock:
            if name not in self._clients:
                kind: Any = GCSStore if place.scheme == "gs" else AzureStore
                options = {
                    "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                    "timeout": timedelta(seconds=_REQUEST_SECONDS),
                    "allow_http": is_without_tls(),
                }
                # The account may be another one than that of the environment: the location names it.
                own = {"account_name": place.account} if place.account else {}
                self._clients[name] = kind(place.bucket, client_options=options, retry_config=_RETRIES, **own)
            return self._clients[name]


def place_of(location: str) -> Place:
    """Return where a location is.

    Raises:
        ValueError: it is in another store.
    """
    parts = urlsplit(location, allow_fragments=False)
    key = location.split("/", 3)[3] if location.count("/") > 2 else ""
    container, _, host = parts.netloc.rpartition("@")
    if parts.scheme == "gs" and host and not container:
        return Place("gs", host, "", key)
    if parts.scheme == "abfss" and container and host:
        return Place("abfss", container, host.partition(".")[0], key)
    raise ValueError(f"{location} is no location in Google's or Azure's store")


def azure_uri(container: str, prefix: str) -> str:
    """Return the location of a folder in a container of the environment's account.

    Raises:
        ValueError: the environment names no account.
    """
    account = azure_account()
    if not account:
        raise ValueError("the environment names no account of Azure: set AZURE_STORAGE_ACCOUNT_NAME")
    return f"abfss://{container}@{account}.dfs.core.windows.net/{prefix}".rstrip("/")
