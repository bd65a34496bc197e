"""Suggestions for mistyped words."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return the candidate that is most similar to a mistyped word; "" if none is similar enough."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    word = word.lower()
    near = get_close_matches(word, by_lower, n=1, cutoff=0.75)
    if not near:
        # The name may be right, and its section wrong or missing.
        leaf = word.rpartition(".")[2]
        near = [name for name in by_lower if leaf and name.endswith((f".{leaf}", f"_{leaf}"))]
        near.sort(key=lambda name: -SequenceMatcher(None, word, name).ratio())
    return by_lower[near[0]] if near else ""
