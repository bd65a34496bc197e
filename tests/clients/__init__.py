"""Clients as people have them, of several languages: each writes one model, which is read back value for value."""
