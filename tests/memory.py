"""A bucket without a server, for what is about records alone."""

from __future__ import annotations


class MemoryBucket:
    """A bucket that is a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def create(self, key: str, body: bytes, **_: object) -> None:
        """As `Bucket.create`, of a key that is not there yet."""
        assert key not in self.held
        self.held[key] = body

    def keys(self, prefix: str) -> list[str]:
        """As `Bucket.keys`."""
        return sorted(key for key in self.held if key.startswith(prefix))

    def read(self, key: str) -> bytes:
        """As `Bucket.read`."""
        return self.held[key]
