"""The keyring: without it no backup can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from include.cli.printing import OUT
from include.pipeline.keys import Keyring


def create(path: Annotated[Path, typer.Argument(help="A new file; it gets mode 0600.")]) -> None:
    """Write a new keyring. Put a copy where a fire cannot reach: without it every backup is noise."""
    keyring = Keyring.create(path)
    OUT.print(f"{path}: key-encryption key {keyring.current_kek}, signing key {keyring.current_signing_key}")
