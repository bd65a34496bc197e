"""The native kernel: parts of arcpipe in C, if the package `arcpipe-native` of this very version is installed.

Whatever it does, there is Python that does the same. It gives the same results, and leaves all that is not plainly good
to that Python, so errors have one source. `native/` has its source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arcpipe import __version__

if TYPE_CHECKING:
    from types import ModuleType

_NAME: Final = "arcpipe_native"
_PARTS: Final = (
    *("LineReader", "Outline", "RecentKeys"),
    *("array_headers", "find_columns", "gather_rows", "join_entry", "key_records", "read_column", "walk_columns"),
)


def find(version: str = __version__) -> tuple[ModuleType | None, str]:
    """Find the kernel: the module, or None and the reason why one that is installed is not used."""
    try:
        import arcpipe_native
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _NAME:
            return None, ""
        return None, f"arcpipe-native is not used, because it cannot be loaded: {error}"
    found = getattr(arcpipe_native, "__version__", "unknown")
    if found != version:
        because = f"because arcpipe is {version}: install the same version of both"
        return None, f"arcpipe-native {found} is not used, {because}"
    if not all(hasattr(arcpipe_native, part) for part in _PARTS):  # of an earlier commit, between two releases
        return None, f"arcpipe-native {found} is not used, because parts of it are missing: install it again"
    return arcpipe_native, ""


KERNEL, REFUSAL = find()
