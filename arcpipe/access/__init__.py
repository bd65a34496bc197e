"""Access: tokens, certificates, their expiry, and reading them again while the server runs."""
