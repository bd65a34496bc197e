"""The bounds of a worker, from its settings and the limits of its process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from arcpipe import descriptors
from arcpipe.units import KB, MB

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.descriptors import Room

# Bytes that wait for a disabled WAL. Clients do not wait for the disk then, and would fill `server.max_inflight_mb`.
# With 32 MB they waited for 0.1 s once that was full (benchmarks/NOTES.md).
MAX_UNWRITTEN: Final = 8 * MB

# Bytes that one read from a socket brings, at most.
READ_BYTES: Final = 256 * KB


class Limits(Struct, frozen=True):
    """The settings that bound one worker; sizes in bytes, times in seconds."""

    max_body: int
    max_header: int
    max_headers: int
    max_url: int
    max_connections: int
    max_handshakes: int  # of TLS, at one listener
    max_turned_away: int  # connections above the limit that get an answer, and time to read it
    max_pipelined: int
    max_pending: int
    writes_behind: bool  # what is answered may still be pending: `wal.enabled = false`
    max_arriving: int
    max_kept: int
    header_timeout: float
    body_timeout: float
    max_body_seconds: float
    keep_alive: float

    @classmethod
    def of(cls, settings: Settings, room: Room | None = None) -> Limits:
        """Derive the bounds from settings.

        Args:
            room: for connections, if the process may have fewer than the settings ask for.
        """
        server = settings.server
        if room is None:
            room = descriptors.room(server.max_connections)
        half = server.max_inflight_mb * MB // 2
        return cls(
            max_body=server.max_body_mb * MB,
            max_header=server.max_header_kb * KB,
            max_headers=server.max_headers,
            max_url=server.max_url_kb * KB,
            max_connections=room.connections,
            max_handshakes=room.handshakes,
            max_turned_away=room.turned_away,
            max_pipelined=server.max_pipelined,
            max_pending=half if settings.wal.enabled else min(half, MAX_UNWRITTEN),
            writes_behind=not settings.wal.enabled,
            max_arriving=half,
            max_kept=max(half // 8, READ_BYTES),
            header_timeout=server.header_timeout_seconds,
            body_timeout=server.body_timeout_seconds,
            max_body_seconds=server.max_body_seconds,
            keep_alive=server.keep_alive_seconds,
        )
