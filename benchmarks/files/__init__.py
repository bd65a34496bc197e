"""Figures about the files in the store: how many a day, how fast a far store takes them, how fast they are merged."""
