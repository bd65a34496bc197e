"""Codec, formats and files, without a server."""
