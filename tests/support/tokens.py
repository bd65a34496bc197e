"""Tokens: made by the command, and as the product holds them."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcpipe.access import tokens
from arcpipe.access.tokens import Token
from tests.support import preloaded
from tests.support.program import environment


def arcpipe(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run(*arguments, directory=directory, environ=environment(auth_enabled=True), check=True)


def create(directory: Path, *options: str) -> str:
    """A new token, by the command."""
    return arcpipe(directory, "token", "create", *options).stdout.strip()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def new_token(**changes: Any) -> tuple[str, Token]:
    """A new token that may write, as text and as the product holds it; `changes` are fields."""
    token_id, text = tokens.generate()
    fields = {
        "id": token_id,
        "sha256": tokens.digest(text.encode()).hex(),
        "scopes": ("write",),
        "created": datetime.now(UTC),
    }
    return text, Token(**{**fields, **changes})
