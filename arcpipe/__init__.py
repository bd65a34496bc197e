"""arcpipe: a durable HTTP ingestion gateway that turns telemetry into Parquet, exactly once."""

__version__ = "0.2.0.dev0"
