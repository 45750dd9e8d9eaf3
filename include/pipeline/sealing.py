"""One sealed stream: a zstd frame inside a Cobblestone-256 stream (C2SP `chunked-encryption`, R7.1).

Always compressed, then encrypted. The *context* binds a stream to its place, so that a stream moved, renamed or swapped
does not decrypt. Nothing that comes out of `Opener` is proved complete before `finish()`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from include.errors import BackupError
from include.pipeline.canonical import canonical_json

Context = Mapping[str, str | int]
"""What a stream is: canonical JSON of it is authenticated with every byte."""

_JOB_BYTES = 2 << 20
"""What a compressor's thread takes at a time: zstd's own choice is four times the memory, and 1 % smaller."""
OUTPUT_BYTES = 1 << 20
"""The most raw bytes that are handed on at once."""


class StreamRefused(BackupError):
    """A sealed stream that is not what its manifest says: changed, truncated, moved, or under another key."""


@dataclass(frozen=True)
class Measure:
    """Size in bytes and SHA-256 of what went in (raw) and of what came out (stored)."""

    raw_bytes: int
    raw_sha256: str
    stored_bytes: int
    stored_sha256: str


class Sealer:
    """Compresses and encrypts one stream, counting and digesting both sides.

    `level` is zstd's; `workers` are its threads (0: compress in the calling thread).
    """

    def __init__(self, key: bytes, context: Context, *, level: int, workers: int = 0) -> None:
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: level,
            zstd.CompressionParameter.nb_workers: workers,
        }
        if workers:
            options[zstd.CompressionParameter.job_size] = _JOB_BYTES
        self._compressor = zstd.ZstdCompressor(options=options)
        self._encryptor = Cobblestone256Encryptor(key, context=canonical_json(context))
        self._raw_sha256, self._stored_sha256 = hashlib.sha256(), hashlib.sha256()
        self.raw_bytes = self.stored_bytes = 0

    def add(self, raw: bytes | memoryview) -> bytes:
        """Take the next bytes; returns whatever is ready to be stored."""
        self.raw_bytes += len(raw)
        self._raw_sha256.update(raw)
        return self._encrypt(self._compressor.compress(raw))

    def flush(self) -> bytes:
        """Push out what the compressor holds back, so that `stored_bytes` is true to within one 16 KiB chunk."""
        return self._encrypt(self._compressor.flush(zstd.ZstdCompressor.FLUSH_BLOCK))

    def finish(self) -> bytes:
        """The last bytes of the stream."""
        return self._encrypt(self._compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)) + self._count(
            self._encryptor.finalize()
        )

    def measure(self) -> Measure:
        """Sizes and digests of the finished stream."""
        return Measure(self.raw_bytes, self._raw_sha256.hexdigest(), self.stored_bytes, self._stored_sha256.hexdigest())

    def _encrypt(self, compressed: bytes) -> bytes:
        return self._count(self._encryptor.update(compressed)) if compressed else b""

    def _count(self, stored: bytes) -> bytes:
        self.stored_bytes += len(stored)
        self._stored_sha256.update(stored)
        return stored


class Opener:
    """Decrypts and decompresses one stream; `name` is what an error calls it.

    Every chunk that `add` returns is authentic; that it is the *whole* stream is known only after `finish`.
    """

    def __init__(self, key: bytes, context: Context, *, name: str) -> None:
        self._decryptor = Cobblestone256Decryptor(key, context=canonical_json(context))
        self._decompressor = zstd.ZstdDecompressor()
        self._raw_sha256, self._stored_sha256 = hashlib.sha256(), hashlib.sha256()
        self._raw_bytes = self._stored_bytes = 0
        self._name = name

    def add(self, stored: bytes) -> Iterator[bytes]:
        """Take the next stored bytes; yields the raw bytes that are ready. Raises `StreamRefused`."""
        self._stored_bytes += len(stored)
        self._stored_sha256.update(stored)
        try:
            compressed = self._decryptor.update(stored)
        except InvalidTag:
            raise self._refused("does not decrypt: its bytes, its key or its place are wrong") from None
        yield from self._decompress(compressed)

    def finish(self) -> Iterator[bytes]:
        """The last raw bytes. Raises `StreamRefused` when the stream ends too early or goes on after its end."""
        try:
            compressed = self._decryptor.finalize()
        except InvalidTag:
            raise self._refused("ends before its end: it was cut, or its last bytes are wrong") from None
        yield from self._decompress(compressed)
        if not self._decompressor.eof or self._decompressor.unused_data:
            raise self._refused("is not one whole zstd frame")

    def measure(self) -> Measure:
        """Sizes and digests of the finished stream."""
        return Measure(
            self._raw_bytes, self._raw_sha256.hexdigest(), self._stored_bytes, self._stored_sha256.hexdigest()
        )

    def _decompress(self, compressed: bytes) -> Iterator[bytes]:
        # One stored megabyte can hold gigabytes: what comes out is bounded, not only what goes in.
        pending = compressed
        while pending or not (self._decompressor.needs_input or self._decompressor.eof):
            try:
                raw = self._decompressor.decompress(pending, max_length=OUTPUT_BYTES)
            except (zstd.ZstdError, EOFError):
                raise self._refused("decrypts, and does not decompress") from None
            pending = b""
            self._raw_bytes += len(raw)
            self._raw_sha256.update(raw)
            if raw:
                yield raw

    def _refused(self, why: str) -> StreamRefused:
        return StreamRefused(
            f"{self._name} {why}.", mend="Do not restore from it: use the replica's copy or another backup."
        )


def open_stream(
    stored: Iterable[bytes], key: bytes, context: Context, *, name: str, expected: Measure | None = None
) -> Iterator[bytes]:
    """The raw bytes of one sealed stream, in order; raises `StreamRefused` at the first thing that is wrong.

    `expected` is what the signed manifest says of the stream; the end of the iteration proves it.
    """
    opener = Opener(key, context, name=name)
    for chunk in stored:
        yield from opener.add(chunk)
    yield from opener.finish()
    if expected is not None and opener.measure() != expected:
        raise StreamRefused(
            f"{name} is a whole stream, and not the one that its manifest names.",
            mend="Do not restore from it: use the replica's copy or another backup.",
        )
