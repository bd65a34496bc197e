"""The setting `compaction.dedup`, looked up by the names that folders have."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from arcpipe.lake.keys import database_components, measurement_components


class DedupRules:
    """Tells for each folder whether points that were sent twice count once.

    A key is a database, or database and measurement with a dot between; the latter counts more. Names may have dots
    themselves, so a key is compared in each way in which it can be read.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._databases = {name: word for key, word in rules.items() for name in database_components(key)}
        self._tables: dict[tuple[str, str], str] = {}
        for key, word in rules.items():
            for index, letter in enumerate(key):
                if letter == ".":
                    names = product(database_components(key[:index]), measurement_components(key[index + 1 :]))
                    self._tables |= dict.fromkeys(names, word)

    def applies(self, database: str, measurement: str) -> bool:
        """Tell whether equal points count once; the names are components of a key."""
        word = self._tables.get((database, measurement)) or self._databases.get(database, "none")
        return word == "series_time"
