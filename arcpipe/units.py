"""Units of sizes, in bytes: `64 * KB`, `settings.wal.max_size_mb * MB`.

They are powers of two, in settings whose names end in `_kb` or `_mb`, too.
"""

from __future__ import annotations

from typing import Final

KB: Final = 1024
MB: Final = 1024 * KB
GB: Final = 1024 * MB
