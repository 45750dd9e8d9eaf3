"""`zstd -T2 -3` and `zstd -d` from standard input to standard output, where the system has no such program."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_BYTES = 1 << 20
OPTIONS = {zstd.CompressionParameter.compression_level: 3, zstd.CompressionParameter.nb_workers: 2}


def main() -> None:
    """Filter everything."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    if "-d" in sys.argv:
        with zstd.ZstdFile(source) as file:
            while chunk := file.read(CHUNK_BYTES):
                sink.write(chunk)
        return
    compressor = zstd.ZstdCompressor(options=OPTIONS)
    while chunk := source.read(CHUNK_BYTES):
        sink.write(compressor.compress(chunk))
    sink.write(compressor.flush())


if __name__ == "__main__":
    main()
