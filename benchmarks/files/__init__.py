"""Figures about the files in the store: how many a day, how fast a store with latency takes them, and how fast they are compacted."""
