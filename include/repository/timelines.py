"""Timelines: each recovery and each promotion begins a new one, and its history file says where it branched off.

https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from include.repository.lsn import Lsn, segment_name, segment_start


@dataclass(frozen=True)
class TimelineHistory:
    """One timeline and its ancestors: `switches` are each ancestor and where it was left, oldest first."""

    timeline: int
    switches: tuple[tuple[int, Lsn], ...] = ()

    @classmethod
    def parse(cls, timeline: int, text: str) -> Self:
        """Read a history file; raises `ValueError` for one that is none."""
        lines = [line.split("#")[0].split() for line in text.splitlines()]
        switches = tuple((int(line[0]), Lsn.parse(line[1])) for line in lines if line)
        order = [number for number, _ in switches]
        if order != sorted(set(order)) or any(number >= timeline for number in order):
            raise ValueError(f"the history of timeline {timeline} is out of order")
        return cls(timeline, switches)

    def contains(self, timeline: int) -> bool:
        """Whether that is this timeline or one of its ancestors."""
        return timeline == self.timeline or any(timeline == ancestor for ancestor, _ in self.switches)

    def left_at(self, timeline: int) -> Lsn | None:
        """Where an ancestor was left; None for this timeline, which goes on. Raises `KeyError` for a stranger."""
        return None if timeline == self.timeline else dict(self.switches)[timeline]

    def timeline_at(self, lsn: Lsn) -> int:
        """The timeline whose log holds the byte at `lsn`."""
        return next((ancestor for ancestor, end in self.switches if lsn < end), self.timeline)

    def reached(self, timeline: int, start: Lsn, end: Lsn, segment_bytes: int) -> Lsn | None:
        """Where a window `[start, end)` of a timeline ends along this history; None when it is beside it.

        An ancestor's counts up to where that was left, from the beginning of that segment, because the newer timeline
        has the whole of it.
        """
        if not self.contains(timeline):
            return None
        left = self.left_at(timeline)
        if left is None or end <= left:
            return end
        last = segment_start(left, segment_bytes)
        return last if start <= last else None

    def segment_names(self, start: Lsn, end: Lsn, segment_bytes: int) -> Iterator[str]:
        """The segments of `[start, end)`, in order, each of the newest timeline that has a part of it.

        A segment in which a timeline was left is there twice; recovery asks for the newer one, which begins with a copy
        of what the older one had.
        """
        position = segment_start(start, segment_bytes)
        while position < end:
            last = Lsn(position + segment_bytes - 1)
            yield segment_name(self.timeline_at(last), position, segment_bytes)
            position = Lsn(position + segment_bytes)
