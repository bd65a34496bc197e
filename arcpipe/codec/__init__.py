"""Bytes <-> columns: bodies of clients, entries of the WAL, values of Parquet files.

Pure functions over bytes; bounded caches change no result. No module here knows a socket, a file, an event loop, a
setting or another package of arcpipe but `errors` and `units`. A body that cannot be taken raises `BadPayload`, whose
text says why and where.
"""
