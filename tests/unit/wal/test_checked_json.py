"""Small JSON files: what is damaged, and what another version wrote, are told apart."""

from __future__ import annotations

import msgspec
import pytest

from arcpipe.errors import UnknownVersion
from arcpipe.wal.checked_json import decode, encode
from arcpipe.wal.checksum import with_checksum


class Content(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    name: str


def read(data: bytes) -> Content:
    return decode(data, Content, 1, "some.json", "Nothing happens until that version runs again")


def test_what_is_written_is_read() -> None:
    assert read(encode(Content(1, "é"))) == Content(1, "é")


@pytest.mark.parametrize("place", range(5, 40, 7))
def test_a_flipped_bit_is_damage(place: int) -> None:
    data = bytearray(encode(Content(1, "abc")))
    data[place] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        read(bytes(data))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version":1,"name":"a"}'])
def test_a_file_without_a_checksum_is_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match="checksum"):
        read(data)


@pytest.mark.parametrize("content", [b'{"version":2,"name":"a"}', b'{"version":1,"name":"a","more":1}'])
def test_an_intact_file_of_another_version_is_told(content: bytes) -> None:
    with pytest.raises(UnknownVersion, match=r"some\.json is of another version .* knows version 1.*\. Nothing"):
        read(with_checksum(content))
