"""Figures about the files in the store: how many a day, and how fast a store with latency takes them."""
