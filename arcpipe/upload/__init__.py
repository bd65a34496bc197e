"""The uploader process: sealed segments -> Arrow -> Parquet -> object store, each acknowledged row once.

It takes segments from `wal`, decodes with `codec` and stores with `storage`. It must never import `ingest`.
"""
