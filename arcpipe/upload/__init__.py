"""The uploader process: completed segments -> Arrow -> Parquet -> object store, each acknowledged row once.

It takes segments from `wal`, decodes with `codec` and stores with `storage`; it must never import `ingest`.
"""
