"""The write-ahead log: what is on disk before a request is answered. This page is the format's reference.

A log directory belongs to one running instance (`LOCK`) and to one node for ever (`node.json`):

    worker-{slot}-{YYYYmmdd_HHMMSS}-{seq:06d}.wal   active: a worker appends to it, or has it ready to append to
    ….wal.sealed                                    completed: the uploader's to ship
    ….wal.recovered                                 left by a crash and shipped since; kept for a while
    free/{last µs}-….wal                            retired: waiting to be written over
    batches/{batch_id}.json                         upload manifests
    quarantine/                                     files that are no write-ahead log at all
    ….wal.incoming                                  a replayed file's copy, ignored until its source is archived
    spool/                                          the uploader's scratch space, emptied at start-up

`slot` is the worker's number, `seq` grows by one per segment of a slot, times are UTC.

A segment is a file header and entries, everything big-endian:

    file header    7 bytes   >4sHB   magic "ARCW", version 0x0001, checksum type 0x01 (CRC32, zlib's polynomial)
    entry header  16 bytes   >IQI    payload length, timestamp (µs since the epoch), CRC32 of the payload
    payload        n bytes           exactly one MessagePack value

The payload is the *envelope*, an array of four: `[kind, database, meta, body]`.

    0    segment start   body nil; meta: node, slot, seq, created (µs), version. The first entry of every segment
    1    columnar        body one map {"m": measurement, "columns": {name: array}, "tags"?: [name], "types"?: {…}}
    2    batch           body an array of such maps
    255  segment end     body nil; meta: entries, records, bytes (and recovered). Last entry when complete

`meta` is a map, usually empty (`precision` when the sender named one); readers ignore keys that they don't know.

**Timestamps** strictly increase within a slot, whatever the clock does. A retired segment is written over in
place, so the tail of a file may hold intact entries of its former life. They all have timestamps below the
`created` of the present start entry, and below the second in the file's name, because a file is only written over in
a later second than that of the last timestamp that it ever held (its name in `free/` carries it). A reader stops at a
segment end and at the end of the file. Intact entries below `created` are none of this life, wherever they stand:
after a torn write some may show through among new ones.

**Creation.** A segment gets its header and start entry while it is still below `free/`, is synced there, and only
then renamed into service and the directories synced: a file named `….wal` never shows a former life, and is never
empty. (With the log disabled only the start of a file that is written over is synced: enough for the former half.)
The pool is emptied at start-up.

**Torn and damaged.** Bytes that hold no intact entry, with none behind them, are a torn tail: what was being
written when the power went, never acknowledged, cut off by recovery. Bytes with intact entries behind them are
damage: counted, reported with their offset, and skipped. The length in a damaged header is not believed. Timestamps
have no checksum: one that is far above both its neighbours is damage, and its entry gets a likelier one.

Rooms: `format` packs and unpacks, `disk` makes the system calls, `group` is what goes to disk together, `segment` one
file's life, `pool` the files to be written over. `writer` commits groups to one segment after the other; `pipeline`
makes and seals these beside it, `background_sync` syncs them in the `async` mode. `group_commit` drives it from a loop.
`reader` scans and verifies, `recovery` is start-up, `directory` the whole of it.
This package knows nothing of HTTP, Parquet or S3.
"""

from arcpipe.wal.reader import WALReader
from arcpipe.wal.recovery import WALRecovery
from arcpipe.wal.writer import WALWriter

__all__ = ["WALReader", "WALRecovery", "WALWriter"]
