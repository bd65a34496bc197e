"""MessagePack bodies of clients -> columnar maps."""
