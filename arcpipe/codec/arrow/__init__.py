"""Arrays of MessagePack as Arrow arrays."""
