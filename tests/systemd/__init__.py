"""A real boot under systemd."""
