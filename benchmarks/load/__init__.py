"""The load: request bodies, the generator that sends them, and several generators driven together."""
