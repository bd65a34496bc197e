"""Metadata files in S3, kept as `[storage.s3]` says: with its encryption and storage class, which Arrow cannot ask for.

Files are small: each is one request, and is in memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session
from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.typedef import EMPTY_DICT, Properties

from arcpipe.tables.iceberg.file_io import ObjectInput, ObjectOutput

KEPT: Final = "s3.arcpipe."
"""How names of properties begin that say how objects are kept; the SDK's field follows. They are arcpipe's own."""

_ABSENT: Final = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_DENIED: Final = frozenset({"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_TRIES: Final = 3


class S3FileIO(FileIO):
    """Files of S3. Several threads may use it."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        endpoint = properties.get("s3.endpoint")
        is_virtual = properties.get("s3.force-virtual-addressing") == "true"
        self.kept = {key.removeprefix(KEPT): value for key, value in properties.items() if key.startswith(KEPT)}
        self.client: Any = get_session().create_client(
            "s3",
            region_name=properties.get("s3.region") or properties.get("client.region"),
            endpoint_url=endpoint,
            aws_access_key_id=properties.get("s3.access-key-id"),
            aws_secret_access_key=properties.get("s3.secret-access-key"),
            aws_session_token=properties.get("s3.session-token"),
            config=Config(
                connect_timeout=float(properties.get("s3.connect-timeout", "10")),
                read_timeout=float(properties.get("s3.request-timeout", "30")),
                retries={"total_max_attempts": _TRIES, "mode": "standard"},
                s3={"addressing_style": "virtual" if is_virtual else "path" if endpoint else "auto"},
            ),
        )

    def new_input(self, location: str) -> ObjectInput:
        return ObjectInput(location, self)

    def new_output(self, location: str) -> ObjectOutput:
        return ObjectOutput(location, self)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        place = place_of(location if isinstance(location, str) else location.location)
        with _errors(place):
            self.client.delete_object(**place)

    def read(self, location: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""
        place = place_of(location)
        with _errors(place):
            return bytes(self.client.get_object(**place)["Body"].read())

    def write(self, location: str, data: bytes) -> None:
        """Put an object."""
        place = place_of(location)
        with _errors(place):
            self.client.put_object(**place, Body=data, **self.kept)

    def listed(self, folder: str) -> list[tuple[str, float]]:
        """List the objects of a folder, without those of its folders: names, and seconds since the epoch."""
        place = place_of(folder.rstrip("/") + "/")
        found = []
        with _errors(place):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=place["Bucket"], Prefix=place["Key"], Delimiter="/"
            )
            for page in pages:
                found += [(one["Key"], one["LastModified"].timestamp()) for one in page.get("Contents", ())]
        return [(key.removeprefix(place["Key"]), modified) for key, modified in found if key != place["Key"]]

    def size(self, location: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""
        place = place_of(location)
        with _errors(place):
            return int(self.client.head_object(**place)["ContentLength"])


def place_of(location: str) -> dict[str, str]:
    """Return bucket and key of a location in S3.

    Raises:
        ValueError: it is elsewhere.
    """
    parts = urlsplit(location, allow_fragments=False)
    if parts.scheme not in ("s3", "s3a", "s3n") or not parts.netloc:
        raise ValueError(f"{location} is no location in S3")
    return {"Bucket": parts.netloc, "Key": location.split("/", 3)[3]}


@contextmanager
def _errors(place: dict[str, str]) -> Iterator[None]:
    """Raise what other implementations of FileIO raise: OSError and its kinds."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        kind = FileNotFoundError if code in _ABSENT else PermissionError if code in _DENIED else OSError
        raise kind(f"s3://{place['Bucket']}/{place['Key']}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"s3://{place['Bucket']}/{place['Key']}: {error}") from error
