"""The write-ahead log (WAL): records are on disk before their request is answered. This page is the format's reference.

    writer = WALWriter("data/wal", slot=1)                    # write records without a server
    writer.append([{"measurement": "cpu", "usage": 0.5}])     # on disk when it returns
    writer.close()
    for batch in WALReader("data/wal/worker-1-….wal.sealed").read_all(): ...
    WALRecovery("data/wal").recover(callback)                 # read all segments of a directory, then archive them

A WAL directory belongs to one running instance (`LOCK`) and to one node for ever (`node.json`):

    worker-{slot}-{YYYYmmdd_HHMMSS}-{seq:06d}.wal   active: a worker appends to it, or has it ready to append to
    ….wal.sealed                                    sealed: nobody writes to it, the uploader takes it
    ….wal.recovered                                 left by a crash or damaged, and uploaded since; kept for a while
    free/{last µs}-….wal                            retired: waiting to be written over
    batches/{batch_id}.json                         upload manifests
    quarantine/                                     files that cannot be read as a WAL at all
    ….wal.incoming                                  a replayed file's copy, ignored until its source is archived
    spool/                                          the uploader's scratch space, emptied at start-up
    idempotency/                                    the idempotency keys that are known (`upload.key_files`)
    compaction/                                     the lock and the plan of the process that merges files
    findings.json, acknowledged.json                damage and losses, and which of them an operator has seen

`slot` is the worker's number, `seq` grows by one per segment of a slot, times are UTC.

A segment is a file header and entries, everything big-endian:

    file header    7 bytes   >4sHB   magic "ARCW", version 0x0001, checksum type 0x01 (CRC32, zlib's polynomial)
    entry header  16 bytes   >IQI    payload length, timestamp (µs since the epoch), CRC32 of the payload
    payload        n bytes           exactly one MessagePack value

The payload is the *envelope*, an array of four: `[kind, database, meta, body]`.

    0    segment start   body nil; meta: node, slot, seq, created (µs), version, replaces?. The first entry of a segment
    1    columnar        body one map {"m": measurement, "columns": {name: array}, "tags"?: [name], "types"?: {…}}
    2    batch           body an array of such maps
    3    Arrow           body a map {"m", "rows", "bytes", "tags"?, "time"?, "arrow": an Arrow IPC stream}
    255  segment end     body nil; meta: entries, records, bytes (and recovered). Last entry of a sealed segment

`meta` is a map with these keys. Readers ignore keys that they don't know.

    in          always the first: the identity
    precision   the unit of `time`, where the sender named one
    key         the idempotency key of the request, where it had one
    by          the id of the token that sent such a request
    part        the number of the entry among those of such a request, if it is not 0
    clock       only while the machine's clock is below the timestamps, which never go back: the µs to add to them
    replaces    [seq, offset]: after a failed background sync, the segment holds again what that segment of the same
                slot held at and after that offset. Recovery cuts that one there

**Identity.** `in` is a binary of 16 bytes, the same in every entry of a segment: slot (2 bytes), seq (6) and a random
number (8). An entry belongs to a segment only if its identity is that of the segment's start entry.

- A retired segment is written over in place, so a file's tail may hold intact entries of another segment. They are
  *stale*.
- A client's value may hold whole entries. They are not entries of the segment, whatever is damaged around them.
- Where the start entry is damaged, the identity is learned from the other entries (`life`).

**Files without identities** come from older versions and other programs. There an entry is stale if its timestamp is
below the `created` of the start entry, or below the second in the file's name if the start entry is damaged. So a file
is written over only in a later second than that of its last timestamp, which its name in `free/` carries.

**Timestamps** strictly increase within a slot, whatever the clock does. No checksum covers them. In a segment with an
identity they hide nothing: one that is out of order is damage of length 0, and its entry gets one between its
neighbours.

**Creation.** A segment gets its header and start entry while it is still below `free/`, and is synced there. Only then
it is renamed into service, and the directories are synced. So a file named `….wal` is never empty, and never shows
stale content alone. (With `wal.enabled = false` only the start of a file that is written over is synced; that is
enough for the second promise.) The pool is emptied at start-up.

**Torn, damaged, unreadable.** A scan ends in one verdict (`verdict`), and everything that is done follows from it:

    clean end    the end entry is there, its counts agree         sealed and uploaded
    torn tail    of an active segment only, no end entry          cut off after the last entry, ended, sealed
    damaged      gaps, a search that was given up, no end entry   not changed; the readable part is uploaded, and the
                 in a sealed segment, other counts, a timestamp   original is kept as ….wal.recovered
    unreadable   a read failed                                    left exactly as it is, tried again

The length in a damaged header is not believed, so nothing intact is stepped over.

Modules:

    format                        packs and unpacks bytes
    directory, lock, probe, pool  the WAL directory, its lock, a check before a start, the files to write over
    group, segment                entries that go to disk together; one segment file
    writer, options               commits groups to one segment after the other
    stamps, records               the writer's timestamps; records of Python programs as entries
    seal_policy, failed           when a segment is sealed early; segments that failed
    factory, pipeline             make the next segment and seal full ones, on another thread
    group_commit                  drives the writer from an event loop
    background_sync               syncs in the `async` mode
    reader                        scans and verifies, with source, life, walk, salvage, timestamps, report and verdict
    recovery, cut                 start-up after a crash
    offline                       `WALRecovery`: the same without a server, from Python
    findings, acknowledged        damage and losses for the operator, with checksum
    inspect, replay               `arcpipe wal …`

This package knows nothing of HTTP, Parquet or S3.
"""

from arcpipe.wal.offline import WALRecovery
from arcpipe.wal.reader import WALReader
from arcpipe.wal.writer import WALWriter

__all__ = ["WALReader", "WALRecovery", "WALWriter"]
