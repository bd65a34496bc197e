"""Types of values that the sections of several modules share: bounds of numbers, forms of texts."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

YEAR_SECONDS: Final = 365 * 86400

SizeMB = Annotated[int, Meta(ge=1, le=1 << 30)]
Seconds = Annotated[float, Meta(gt=0, le=YEAR_SECONDS)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=YEAR_SECONDS)]

# Surrogates stand for bytes of an environment variable that are not UTF-8.
_CONTROL = r"\x00-\x1f\x7f\ud800-\udfff"
Text = Annotated[str, Meta(pattern=rf"^[^{_CONTROL}]*\Z", description="text without control characters")]
PathText = Annotated[
    str, Meta(pattern=rf"^[^{_CONTROL}]+\Z", description="a path, not empty, without control characters")
]
