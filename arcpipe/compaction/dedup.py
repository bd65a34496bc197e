"""The setting `compaction.dedup`, looked up by the names that folders have."""

from __future__ import annotations

from collections.abc import Mapping

from arcpipe.lake.keys import encode_database, encode_name


class DedupRules:
    """Tells for each folder whether points that were sent twice count once.

    A key is a database, or database and measurement with a dot between; the latter counts more. Names may have dots
    themselves, so a key is compared in each way in which it can be read.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._databases = {encode_database(key): word for key, word in rules.items()}
        self._tables: dict[tuple[str, str], str] = {}
        for key, word in rules.items():
            for index, letter in enumerate(key):
                if letter == ".":
                    self._tables[encode_database(key[:index]), encode_name(key[index + 1 :])] = word

    def applies(self, database: str, measurement: str) -> bool:
        """Tell whether equal points count once; the names are components of a key."""
        word = self._tables.get((database, measurement)) or self._databases.get(database, "none")
        return word == "series_time"
