"""Words that were meant, for those who mistype one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate that a typo most likely stands for, or "" if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    word = word.lower()
    near = get_close_matches(word, by_lower, n=1, cutoff=0.75)
    if not near:
        # Right name, wrong or missing section.
        leaf = word.rpartition(".")[2]
        near = [name for name in by_lower if leaf and name.endswith((f".{leaf}", f"_{leaf}"))]
        near.sort(key=lambda name: -SequenceMatcher(None, word, name).ratio())
    return by_lower[near[0]] if near else ""
