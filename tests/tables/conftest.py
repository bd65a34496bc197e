"""The fixtures of these tests alone: what they import takes seconds."""

from tests.support.iceberg import iceberg_rest, postgresql, world

__all__ = ["iceberg_rest", "postgresql", "world"]
