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
    findings.json, acknowledged.json                damage and losses, and what of them an operator has seen

`slot` is the worker's number, `seq` grows by one per segment of a slot, times are UTC.

A segment is a file header and entries, everything big-endian:

    file header    7 bytes   >4sHB   magic "ARCW", version 0x0001, checksum type 0x01 (CRC32, zlib's polynomial)
    entry header  16 bytes   >IQI    payload length, timestamp (µs since the epoch), CRC32 of the payload
    payload        n bytes           exactly one MessagePack value

The payload is the *envelope*, an array of four: `[kind, database, meta, body]`.

    0    segment start   body nil; meta: node, slot, seq, created (µs), version, replaces?. The first entry of a segment
    1    columnar        body one map {"m": measurement, "columns": {name: array}, "tags"?: [name], "types"?: {…}}
    2    batch           body an array of such maps
    255  segment end     body nil; meta: entries, records, bytes (and recovered). Last entry when complete

`meta` is a map whose first key is `in`, the identity. `precision` follows where the sender named one, and `clock` where
the machine's clock is behind the timestamps, which never go back: the µs to be added to them. Readers ignore keys that
they don't know. `replaces` is `[seq, offset]`: after a background sync that failed, the segment holds again what that
segment of the same slot held at and after that offset. Recovery cuts that one there.

**Identity.** `in` is a binary of 16 bytes, the same in every entry of a segment: slot (2 bytes), seq (6) and a random
number (8). An entry belongs to a segment only if its identity is that of the segment's start entry. A retired segment
is written over in place, so the tail of a file may hold intact entries of another segment: they are *stale*. A client's
value may hold whole entries: they are no entries of ours, whatever is damaged around them. Where the start entry is
damaged, the identity is learned from what else is there (`life`).

**Files without identities** are older ones and those of other programs. There an entry is stale if its timestamp is
below the `created` of the start entry, or below the second in the file's name if the start is damaged. A file is only
written over in a later second than that of the last timestamp that it ever held; its name in `free/` carries it.

**Timestamps** strictly increase within a slot, whatever the clock does. No checksum covers them. In a segment with an
identity they hide nothing: one that is out of order is damage of length 0, and its entry gets one between its
neighbours.

**Creation.** A segment gets its header and start entry while it is still below `free/`, is synced there, and only
then renamed into service and the directories synced: a file named `….wal` never shows a former life, and is never
empty. (With the log disabled only the start of a file that is written over is synced: enough for the former half.)
The pool is emptied at start-up.

**Torn, damaged, unreadable.** A scan ends in one verdict (`verdict`), and everything that is done follows from it:

    clean end    the end entry is there, its counts agree         sealed and uploaded
    torn tail    of an active segment only, no end entry          cut off behind the last entry, ended, sealed
    damaged      gaps, a search that was given up, no end entry   not changed; what is readable is uploaded, and the
                 in a sealed segment, other counts, a timestamp   original is kept as ….wal.recovered
    unreadable   a read failed                                    left exactly as it is, tried again

The length in a damaged header is not believed, so nothing intact is stepped over.

Modules: `format` packs and unpacks, `group` is what goes to disk together, `segment` one file's life, `pool` the
files to be written over. `writer` commits groups to one segment after the other; `pipeline` makes and seals these
beside it, `background_sync` syncs them in the `async` mode. `group_commit` drives it from a loop. `reader` scans and
verifies (with `source`, `life`, `walk`, `salvage`, `timestamps` and `verdict`), `recovery` and `cut` are start-up,
`inspect` is work by hand, `directory` the whole of it.
This package knows nothing of HTTP, Parquet or S3.
"""

from arcpipe.wal.reader import WALReader
from arcpipe.wal.recovery import WALRecovery
from arcpipe.wal.writer import WALWriter

__all__ = ["WALReader", "WALRecovery", "WALWriter"]
