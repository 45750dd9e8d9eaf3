"""The base of every error this project raises on purpose, and of those that trying again cannot mend."""

from __future__ import annotations


class BackupError(Exception):
    """Something that a person must act on.

    `what` says what happened and to what, by name; `mend` says what to do next. Neither may hold a secret.
    """

    def __init__(self, what: str, *, mend: str) -> None:
        super().__init__(f"{what} {mend}")
        self.what = what
        self.mend = mend


class Hopeless(BackupError):
    """What no other try can mend: somebody has to, first. A task that meets it fails at once."""
