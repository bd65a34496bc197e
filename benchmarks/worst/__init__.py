"""Worst cases: bodies, connections and clients that cost the server most."""
