"""The ingest worker: from bytes on a socket to an acknowledged entry in this worker's write-ahead log.

It knows nothing of Parquet, object stores or the uploader, with which it shares segment files and counters only.
"""
