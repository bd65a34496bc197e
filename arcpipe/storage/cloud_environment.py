"""What the environment says of Google's and Azure's stores, by the names that Rust's object_store has for it."""

from __future__ import annotations

import os
from typing import Final

_ADDRESSES: Final = ("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL")
_EMULATOR: Final = "AZURE_STORAGE_USE_EMULATOR"
_EMULATED_ACCOUNT: Final = "devstoreaccount1"
_ACCOUNTS: Final = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME")


def is_without_tls() -> bool:
    """Tell whether an address says so, which is that of an emulator."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ADDRESSES)


def azure_account() -> str:
    """Return the name of Azure's account; empty if the environment does not tell it."""
    if os.environ.get(_EMULATOR, "").lower() in ("1", "true"):
        return _EMULATED_ACCOUNT
    return next((os.environ[name] for name in _ACCOUNTS if os.environ.get(name)), "")
