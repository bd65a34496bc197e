"""Metadata in S3: with the encryption of the settings, with a catalogue's own credentials, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from arcpipe.tables.base import Refused
from arcpipe.tables.iceberg.s3_io import KEPT, S3FileIO, place_of
from arcpipe.tables.iceberg.shared_io import SharedFiles, s3_properties
from tests.support.iceberg import World, assert_becomes_whole_or_nothing, glue_world, postgresql_world
from tests.support.s3server import S3Bucket
from tests.support.tables import CPU, rows

KEPT_FIELDS = ("ServerSideEncryption", "SSEKMSKeyId", "StorageClass")


@pytest.fixture
def world(s3: S3Bucket, tmp_path: Path) -> World:
    return encrypted(glue_world(s3, tmp_path))


def encrypted(made: World) -> World:
    of_s3 = msgspec.structs.replace(
        made.lake.storage.s3, server_side_encryption="aws:kms", kms_key_id="alias/lake", storage_class="STANDARD_IA"
    )
    made.lake = made.lake._replace(storage=msgspec.structs.replace(made.lake.storage, s3=of_s3))
    return made


def kept(bucket: S3Bucket) -> dict[str, Any]:
    """Encryption, key and storage class of each file of metadata."""
    client = bucket.client()
    heads = {
        key: client.head_object(Bucket=bucket.bucket, Key=key) for key in bucket.list_keys() if "/_iceberg/" in key
    }
    return {key: tuple(head.get(name) for name in KEPT_FIELDS) for key, head in heads.items()}


def test_all_metadata_is_kept_as_the_settings_say(world: World, s3: S3Bucket) -> None:
    tables = world.open(history_hours=1)
    tables.check()
    for number in range(3):
        tables.commit(CPU, [world.lake.put(CPU, rows(number * 10), f"b{number}")], "a" * 12, number + 1)
    found = kept(s3)
    assert {key.rpartition(".")[2] for key in found} == {"json", "avro"}
    assert set(found.values()) == {("aws:kms", "alias/lake", "STANDARD_IA")}
    tables.maintain(CPU)
    assert set(kept(s3).values()) == {("aws:kms", "alias/lake", "STANDARD_IA")}
    tables.close()
    assert len(world.numbers()) == 9


def test_the_first_metadata_in_postgresql_is_kept_so_too(postgresql: str, s3: S3Bucket, tmp_path: Path) -> None:
    world = encrypted(postgresql_world(postgresql, s3, tmp_path))
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "b0")], "a" * 12, 1)
    tables.close()
    found = kept(s3)
    assert any("/00000-" in key for key in found)
    assert set(found.values()) == {("aws:kms", "alias/lake", "STANDARD_IA")}


def test_a_file_is_whole_or_not_there(s3: S3Bucket, world: World) -> None:
    files = S3FileIO(s3_properties(world.lake.storage.s3))
    output = files.new_output(f"s3://{s3.bucket}/some/prefix/a b/ü?#")
    assert_becomes_whole_or_nothing(output)
    with output.to_input_file().open() as stream:
        assert stream.read() == b"abc"
    assert [name for name, _ in files.listed(f"s3://{s3.bucket}/some/prefix/a b")] == ["ü?#"]
    files.delete(output)
    files.delete(output)
    assert not output.exists()
    with pytest.raises(FileNotFoundError):
        output.to_input_file().open()


def test_denied_access_and_a_dead_server_are_told_apart(s3: S3Bucket, world: World) -> None:
    files = S3FileIO(s3_properties(world.lake.storage.s3) | {"s3.endpoint": "http://127.0.0.1:9"})
    with pytest.raises(OSError, match=r"s3://b/k: .*127\.0\.0\.1:9") as caught:
        files.new_input("s3://b/k").open()
    assert not isinstance(caught.value, (PermissionError, FileNotFoundError))


@pytest.mark.parametrize("location", ["gs://b/k", "s3:///k", "/x"])
def test_other_places_are_no_places_in_s3(location: str) -> None:
    with pytest.raises(ValueError, match="no location in S3"):
        place_of(location)


def test_credentials_of_a_catalogue_go_before_those_of_the_settings(s3: S3Bucket, world: World) -> None:
    """A REST catalogue gives each table its own: keys, and a token for the session."""
    shared = SharedFiles()
    own = s3_properties(world.lake.storage.s3)
    vended = {"s3.access-key-id": "AKIA1", "s3.secret-access-key": "hidden", "s3.session-token": "token"}
    files = shared.of("s3://b/k", own | vended)
    assert files is shared.of("s3://b/other", own | vended)
    assert files is not shared.of("s3://b/k", own)
    assert isinstance(files, S3FileIO)
    credentials = files.client._request_signer._credentials
    assert (credentials.access_key, credentials.token) == ("AKIA1", "token")
    assert files.properties[KEPT + "ServerSideEncryption"] == "aws:kms"


def test_a_catalogue_that_signs_requests_itself_is_refused_with_the_remedy() -> None:
    with pytest.raises(Refused, match=r"s3\.remote-signing-enabled.*vended credentials"):
        SharedFiles().of("s3://b/k", {"s3.remote-signing-enabled": "true"})
