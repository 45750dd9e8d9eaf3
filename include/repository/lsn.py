"""Places in the write-ahead log, and the names of its segments.

https://www.postgresql.org/docs/current/wal-internals.html: a place is a 64-bit number, written as two hexadecimal ones;
the log is cut into segments of one size (16 MiB unless initdb was told otherwise), and a segment's name has 24
hexadecimal digits: the timeline, and the segment's number in two parts.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)
_SEGMENT = re.compile(r"[0-9A-F]{24}", re.ASCII)
_HISTORY = re.compile(r"[0-9A-F]{8}\.history", re.ASCII)
_XLOG_ID_BYTES = 1 << 32


class Lsn(int):
    """A place in the log: bytes since its beginning. Compared as the number that it is, never as text."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `16/B374D848`; raises `ValueError`."""
        found = _LSN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r} is no place in the write-ahead log: one looks like 16/B374D848")
        return cls(int(found[1], 16) << 32 | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self})"


def _schema(_source: Any, _handler: Any) -> core_schema.CoreSchema:
    return core_schema.no_info_plain_validator_function(
        lambda value: value if isinstance(value, Lsn) else Lsn.parse(value),
        serialization=core_schema.to_string_ser_schema(),
    )


LsnField = Annotated[Lsn, GetPydanticSchema(_schema)]
"""A place in the log as a document holds it: text, as PostgreSQL writes it."""


def segment_start(lsn: Lsn, segment_bytes: int) -> Lsn:
    """Where the segment that holds `lsn` begins."""
    return Lsn(lsn - lsn % segment_bytes)


def segment_end(lsn: Lsn, segment_bytes: int) -> Lsn:
    """The first boundary at or after `lsn`: what it is itself, when a segment begins there."""
    return Lsn(-(-lsn // segment_bytes) * segment_bytes)


def segment_name(timeline: int, lsn: Lsn, segment_bytes: int) -> str:
    """What the segment that holds `lsn` is called on a timeline."""
    number, per_id = lsn // segment_bytes, _XLOG_ID_BYTES // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def segment_lsn(name: str, segment_bytes: int) -> Lsn:
    """Where the segment of that name begins; raises `ValueError`."""
    if not is_segment(name):
        raise ValueError(f"{name!r} is no WAL segment's name")
    return Lsn((int(name[8:16], 16) * (_XLOG_ID_BYTES // segment_bytes) + int(name[16:], 16)) * segment_bytes)


def timeline_of(name: str) -> int:
    """The timeline that a segment's or a history file's name begins with."""
    return int(name[:8], 16)


def history_name(timeline: int) -> str:
    """What the file is called that tells where a timeline branched off; the first has none."""
    return f"{timeline:08X}.history"


def is_segment(name: str) -> bool:
    """Whether a whole segment is called so (not a `.partial` one)."""
    return _SEGMENT.fullmatch(name) is not None


def is_history(name: str) -> bool:
    """Whether a timeline's history is called so."""
    return _HISTORY.fullmatch(name) is not None
