"""A manifest: the segments that are uploaded together, and the names of their objects. Written once, then only read.

`batches/{batch_id}.json` holds `Manifest` as JSON with a checksum (`wal.checksum`). The progress of the batch is in its
journal (`upload.journal`). Once everything is uploaded, the manifest's name says so, too:
`batches/{batch_id}.uploaded.json`. Version 1, of early arcpipe, had no version, no checksum and no journal.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe.errors import UnknownVersion
from arcpipe.lake.keys import Hidden, Layout
from arcpipe.upload.table_schema import TableSchema
from arcpipe.wal.checksum import checksum_holds, with_checksum

VERSION: Final = 2

# {node}-{time}-{boot}.{number}, and since version 2 some random digits.
_BATCH_ID: Final = r"(?P<id>.+-(?P<time>\d{8}T\d{6})-(?P<boot>\d+)\.(?P<number>\d+)(?P<random>-[0-9a-f]+)?)"
_FILE: Final = re.compile(_BATCH_ID + r"(?P<kind>\.json|\.uploaded\.json|\.journal)(?P<temporary>\.tmp)?\Z")
_SEGMENT: Final = re.compile(rb"worker-\d+-\d{8}_\d{6}(?:-\d+)?\.wal\.sealed")


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """A batch as it is written down. Segment names are file names in the WAL directory, in the order of reading."""

    version: int
    batch_id: str
    segments: list[str]
    store: str  # the store's URL when the batch was planned
    layout: Layout  # of the object keys, which must not change between two tries
    replaces: str = ""  # the batch id of an earlier plan, which this one makes void
    hidden: Hidden = "."  # as `encode_name`; older manifests do not have it
    skip: list[str] = []  # folders of keys that earlier plans filled: their rows are in the store


class Decoded(NamedTuple):
    """A manifest, and the fields that only version 1 has."""

    manifest: Manifest
    uploaded: bool = False
    archive: list[str] = []  # noqa: RUF012 (never changed)
    schema: list[TableSchema] = []  # noqa: RUF012


class BatchFile(NamedTuple):
    """The facts in the name of a file in `batches/`."""

    batch_id: str
    order: tuple[int, int, str]  # boot, number, time: a clock that was set changes no order
    kind: str  # ".json", ".uploaded.json" or ".journal"
    is_temporary: bool  # never got its name: nothing depends on it
    had_no_journal: bool  # of version 1: without a journal, objects may have been put all the same


class _Version1(msgspec.Struct, forbid_unknown_fields=True):
    batch_id: str
    state: str
    segments: list[str]
    store: str
    layout: Layout
    archive: list[str] = []
    schema: list[TableSchema] = []


def parse_batch_file(name: str) -> BatchFile | None:
    """Parse the name of a manifest or journal; None for other files, which are left alone."""
    match = _FILE.match(name)
    if match is None:
        return None
    order = int(match["boot"]), int(match["number"]), match["time"]
    return BatchFile(match["id"], order, match["kind"], match["temporary"] is not None, match["random"] is None)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode with a checksum."""
    return with_checksum(msgspec.json.encode(manifest))


def decode_manifest(data: bytes, path: str) -> Decoded:
    """Decode a manifest of any version that this program knows.

    Raises:
        ValueError: it is damaged.
        UnknownVersion: it seems intact, but has a version or field that this program does not know.
    """
    holds = checksum_holds(data)
    if holds is False:
        raise ValueError("its checksum does not match")
    content = msgspec.json.decode(data)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    content.pop("crc32", None)
    version = content.get("version", 1)
    if version == 1 and "state" in content and holds is None:
        return _decode_version_1(content, path)
    if holds is None and version in (1, VERSION):
        raise ValueError("it has no checksum")
    return Decoded(known_manifest(content, path))


def known_manifest(content: Any, path: str) -> Manifest:
    """Make a manifest of intact content.

    Raises:
        UnknownVersion: it has a version, a field or a word that this program does not know.
    """
    version = content.get("version") if isinstance(content, dict) else None
    if version not in (1, VERSION):
        raise unknown_version(path, f"version {version!r}")
    try:
        return msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise unknown_version(path, str(error)) from error


def unknown_version(path: str, found: str) -> UnknownVersion:
    """Make the error that names the file that stops the uploads, and the remedy."""
    return UnknownVersion(
        f"{path} is of another version of arcpipe ({found}; this one knows version {VERSION}). "
        "Nothing is uploaded until that version runs again, or the file is moved away"
    )


def segments_named_in(data: bytes) -> set[str]:
    """Find the names of segments in the bytes of a damaged file."""
    return {name.decode("ascii") for name in _SEGMENT.findall(data)}


def complete_lists_in(data: bytes) -> list[list[str]]:
    """Find whole lists of segments in the bytes of a damaged file; a bit in them may still be wrong."""
    lists = []
    for found in re.findall(rb'"segments":(\[[^\]]*\])', data):
        try:
            names = msgspec.json.decode(found, type=list[str])
        except (msgspec.MsgspecError, ValueError):
            continue
        if all(_SEGMENT.fullmatch(name.encode()) for name in names):
            lists.append(names)
    return lists


def _decode_version_1(content: dict[str, Any], path: str) -> Decoded:
    unknown = content.keys() - {field.name for field in msgspec.structs.fields(_Version1)} - {"version"}
    if unknown:
        raise unknown_version(path, f"field {min(unknown)!r}")
    content.pop("version", None)
    for word, known in (("state", ("planned", "uploaded")), ("layout", ("arc", "hive"))):
        if isinstance(content.get(word), str) and content[word] not in known:
            raise unknown_version(path, f"{word} {content[word]!r}")
    old = msgspec.convert(content, _Version1)
    manifest = Manifest(1, old.batch_id, old.segments, old.store, old.layout)
    return Decoded(manifest, old.state == "uploaded", old.archive, old.schema)
