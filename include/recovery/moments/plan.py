"""The plan of a recovery: what it aims at, what it takes, and what it will reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self, get_args

from include.errors import Hopeless
from include.recovery.cluster.target import StopAt
from include.recovery.moments.reach import LogFile, base_of
from include.repository.layout import BackupId, named_by
from include.repository.lsn import Lsn, segment_start
from include.repository.manifest import Manifest
from include.repository.timelines import TimelineHistory

What = Literal["database", "objects", "configuration"]
EVERYTHING: tuple[What, ...] = get_args(What)

_RESTORE_POINT = re.compile(r"(?P<id>.+)\.(?P<attempt>[0-9a-f]{16})(?:\.\d+)?", re.ASCII)
_WORDS = "latest, a moment with its offset (2026-11-22T10:37:12+00:00), a backup's id, or a restore point's name"


class NoTarget(Hopeless):
    """Text that names no moment that a recovery could aim at."""


class Unreachable(Hopeless):
    """A moment that cannot be recovered. `before` and `after` are the nearest ones that can."""

    def __init__(self, what: str, *, mend: str, before: datetime | None = None, after: datetime | None = None) -> None:
        super().__init__(what, mend=mend)
        self.before, self.after = before, after


@dataclass(frozen=True)
class Target:
    """What a recovery aims at: a moment, a backup's consistency point, or a restore point; else the latest."""

    text: str
    moment: datetime | None = None
    backup: BackupId | None = None
    restore_point: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `latest`, ISO 8601 with an offset, a backup's id, or a restore point's name; raises `NoTarget`."""
        text = text.strip()
        if text == "latest":
            return cls(text)
        if backup := named_by(text):
            return cls(text, backup=backup)
        point = _RESTORE_POINT.fullmatch(text)
        if point and (backup := named_by(point["id"])):
            return cls(text, backup=backup, restore_point=text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise NoTarget(f"{text!r} is nothing to recover to.", mend=f"Name {_WORDS}.") from None
        if moment.tzinfo is None:
            raise NoTarget(
                f"{text!r} does not say of which time zone it is.",
                mend=f"With its offset it is one moment: {iso(moment.replace(tzinfo=UTC))} if it is UTC.",
            )
        return cls(text, moment=moment.astimezone(UTC))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ObjectsSource:
    """Where objects come back from: a whole listing, the increments after it, and as of when by the store's clock.

    `later` are the increments after the moment: an object that the recovered database names, and that did not exist
    yet, is taken from them.
    """

    base: Manifest
    increments: tuple[Manifest, ...]
    later: tuple[Manifest, ...]
    as_of: datetime


@dataclass(frozen=True)
class ConfigurationSource:
    """Where the configuration comes back from: the newest bundle, and the newest files, at or before the moment."""

    repository: Manifest
    files: Manifest
    as_of: datetime


@dataclass(frozen=True)
class Skew:
    """How far objects and configuration are from the moment that the database reaches; negative is earlier."""

    objects: timedelta | None
    configuration: timedelta | None

    def __str__(self) -> str:
        told = [
            f"{what} {_seconds(skew)}"
            for what, skew in (("objects", self.objects), ("configuration", self.configuration))
            if skew is not None
        ]
        return ", ".join(told) or "none"


@dataclass(frozen=True)
class RecoveryPlan:
    """One recovery, planned. `wal` are the files that recovery asks for: histories, then the segments in their order.

    `reaches` is the moment that it really reaches: of the last transaction that it keeps, or of the consistency point
    that it stops at. Bytes are of what is asked for; seconds are expected.
    """

    target: Target
    what: tuple[What, ...]
    system_identifier: str
    base: Manifest
    history: TimelineHistory
    segment_bytes: int
    wal: tuple[LogFile, ...] = field(repr=False)
    end_lsn: Lsn
    stop: StopAt
    at: Manifest | None
    """The backup whose consistency point it is, where it is one."""
    reaches: datetime
    objects: ObjectsSource | None
    configuration: ConfigurationSource | None
    skew: Skew
    download_bytes: int
    raw_bytes: int
    download_seconds: int
    unpack_seconds: int
    replay_seconds: int
    notes: tuple[str, ...] = ()
    backups: tuple[str, ...] = field(default=(), repr=False)
    """Every backup that it reads from, the windows of its log among them: what must not go meanwhile."""

    @property
    def start_lsn(self) -> Lsn:
        """Where replay begins: a segment's boundary."""
        return segment_start(base_of(self.base).start_lsn, self.segment_bytes)

    @property
    def minutes(self) -> float:
        """Expected, of all three."""
        return round((self.download_seconds + self.unpack_seconds + self.replay_seconds) / 60, 1)

    def lines(self) -> Iterator[str]:
        """The plan, as people read it."""
        yield f"target         {self.target}"
        yield f"reaches        {iso(self.reaches)}"
        yield f"base           {self.base.id}, complete at {iso(base_of(self.base).stopped)}"
        yield (
            f"log            {self.start_lsn} to {self.end_lsn}, {len(self.wal)} files, "
            f"timeline {self.history.timeline} of cluster {self.system_identifier}"
        )
        yield f"stops          {'at ' if self.stop.name else ''}{self.stop}"
        if self.objects:
            yield (
                f"objects        {self.objects.base.id} and {len(self.objects.increments)} increments, "
                f"as of {iso(self.objects.as_of)}"
            )
        if self.configuration:
            yield f"configuration  {self.configuration.repository.id}, as of {iso(self.configuration.as_of)}"
        yield f"skew           {self.skew}"
        yield f"bytes          {self.download_bytes / 1e6:,.1f} MB to download, {self.raw_bytes / 1e6:,.1f} MB raw"
        yield (
            f"expected       {self.minutes} min (download {self.download_seconds} s, unpack {self.unpack_seconds} s, "
            f"replay {self.replay_seconds} s)"
        )
        for note in self.notes:
            yield f"note           {note}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """What it says, small enough for an XCom however long the log is; `reopen` makes the plan of it again."""
        return {
            "target": str(self.target),
            "what": list(self.what),
            "system_identifier": self.system_identifier,
            "timeline": self.history.timeline,
            "base": self.base.id,
            "start_lsn": str(self.start_lsn),
            "end_lsn": str(self.end_lsn),
            "stop": {
                "name": self.stop.name,
                "lsn": None if self.stop.lsn is None else str(self.stop.lsn),
                "inclusive": self.stop.inclusive,
            },
            "at": self.at.id if self.at else None,
            "reaches": iso(self.reaches),
            "wal_files": len(self.wal),
            "objects": self.objects
            and {
                "base": self.objects.base.id,
                "increments": len(self.objects.increments),
                "as_of": iso(self.objects.as_of),
            },
            "configuration": self.configuration
            and {
                "repository": self.configuration.repository.id,
                "files": self.configuration.files.id,
                "as_of": iso(self.configuration.as_of),
            },
            "skew": str(self.skew),
            "download_bytes": self.download_bytes,
            "raw_bytes": self.raw_bytes,
            "minutes": self.minutes,
            "seconds": {
                "download": self.download_seconds,
                "unpack": self.unpack_seconds,
                "replay": self.replay_seconds,
            },
            "notes": list(self.notes),
        }


def iso(moment: datetime) -> str:
    """A moment as it can be pasted back: ISO 8601, UTC, to the microsecond where it has some."""
    return moment.astimezone(UTC).isoformat()


def _seconds(skew: timedelta) -> str:
    return f"{skew.total_seconds():+.0f} s"
