"""Bytes <-> columns: what clients send, what the write-ahead log holds, what becomes Parquet.

Pure functions over bytes. Nothing in here knows a socket, a file, an event loop, a setting or another room of
arcpipe but `arcpipe.errors`; a body that cannot be taken raises `BadPayload` with what is wrong and where.
"""
