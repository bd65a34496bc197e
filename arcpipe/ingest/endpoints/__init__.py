"""Endpoints: the handlers of the server's paths."""
