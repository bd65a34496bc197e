"""MessagePack bodies of clients as columns."""
