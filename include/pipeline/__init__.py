"""Bytes in motion: compression, encryption, keys, the stream itself, progress."""
