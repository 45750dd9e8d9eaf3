"""A cluster, back at one place of its log: unpacked, replayed, looked at, and only then a server that takes writes."""
