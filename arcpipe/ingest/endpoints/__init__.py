"""Endpoints: what the paths of the server do."""
