"""The ingest worker: from bytes on a socket to an acknowledged entry in this worker's write-ahead log.

Knows nothing of Parquet, object stores or the uploader: what passes between them is segment files and counters.
"""
