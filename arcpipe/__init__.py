"""arcpipe: a durable HTTP ingestion gateway that turns telemetry into Parquet, exactly once."""

__version__ = "0.1.0"
