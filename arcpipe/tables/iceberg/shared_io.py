"""One reader and writer of metadata files for all tables: connections to a store are made once, not for each table."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import Properties

from arcpipe.config.settings import StorageS3
from arcpipe.storage.s3_fields import fields_of_objects
from arcpipe.tables.base import Refused
from arcpipe.tables.iceberg.file_io import LocalFileIO
from arcpipe.tables.iceberg.s3_io import KEPT, S3FileIO

_MOST: Final = 16  # of different credentials: a REST catalogue may give each table its own
_CONNECT_SECONDS: Final = "10"
_REQUEST_SECONDS: Final = "30"
_SIGNING: Final = "s3.remote-signing-enabled"


def s3_properties(options: StorageS3) -> dict[str, str]:
    """Return `[storage.s3]` as pyiceberg's properties."""
    found = {
        "s3.endpoint": options.endpoint_url,
        "s3.region": options.region or ("us-east-1" if options.endpoint_url else ""),
        "s3.access-key-id": options.access_key_id,
        "s3.secret-access-key": options.secret_access_key,
        "s3.session-token": options.session_token,
        "s3.force-virtual-addressing": "true" if options.addressing_style == "virtual" else "",
        **{KEPT + field: value for field, value in fields_of_objects(options).items()},
    }
    return {
        **{key: value for key, value in found.items() if value},
        "s3.connect-timeout": _CONNECT_SECONDS,
        "s3.request-timeout": _REQUEST_SECONDS,
    }


class SharedFiles:
    """The readers and writers, by what they need to reach their store."""

    def __init__(self) -> None:
        self._local = LocalFileIO()
        self._remote: OrderedDict[tuple[str, tuple[tuple[str, str], ...]], FileIO] = OrderedDict()

    def of(self, location: str, properties: Properties) -> FileIO:
        """Return the one for a location.

        Raises:
            Refused: a catalogue wants to sign each request itself.
        """
        if location.startswith(("file:", "/")):
            return self._local
        needed = tuple(
            sorted(
                (key, str(value))
                for key, value in properties.items()
                if key.startswith(("s3.", "client.", "gcs.", "adls."))
            )
        )
        key = (location.partition(":")[0], needed)
        found = self._remote.pop(key, None) or _open(location, dict(needed))
        self._remote[key] = found
        if len(self._remote) > _MOST:
            self._remote.popitem(last=False)
        return found


def _open(location: str, properties: dict[str, str]) -> FileIO:
    if properties.get(_SIGNING, "").lower() == "true":
        raise Refused(
            f"the catalogue wants to sign each request for {location} itself ({_SIGNING}), which arcpipe cannot: have "
            "it give credentials instead (vended credentials), or leave it to those of [storage.s3]"
        )
    if any(key.startswith(KEPT) for key in properties) and location.startswith("s3"):
        return S3FileIO(properties)
    # Credentials of a catalogue's own are for pyiceberg's implementation.
    if location.startswith(("gs://", "abfss://")) and not any(key.startswith(("gcs.", "adls.")) for key in properties):
        from arcpipe.tables.iceberg.cloud_io import CloudFileIO

        return CloudFileIO(properties)
    return PyArrowFileIO(properties)
