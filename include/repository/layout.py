"""Names and keys: what a backup is called and where each of its objects lies (`docs/format.md`, *Layout*)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, cast, get_args

from include.errors import BackupError
from include.repository.lsn import timeline_of

BackupType = Literal["full", "incremental", "snapshot", "archive"]
BACKUP_TYPES: tuple[BackupType, ...] = get_args(BackupType)
ROLLING_TYPES: tuple[BackupType, ...] = ("full", "incremental", "snapshot")
"""What has a slot a day, an hour or a week; an archive has one a month, for each retention class."""

_SCHEDULED = re.compile(r"(?P<type>[a-z]+)-(?P<stamp>\d{8}T\d{6}Z)", re.ASCII)
_MANUAL = re.compile(r"(?P<type>[a-z]+)-manual-(?P<stamp>\d{8}T\d{6}\.\d{6}Z)", re.ASCII)
_ARCHIVE = re.compile(r"archive-(?P<class>[a-z][a-z0-9_]*)-(?P<month>\d{4}-\d{2})", re.ASCII)
_ATTEMPT, _PACK = re.compile(r"[0-9a-f]{16}", re.ASCII), re.compile(r"[0-9a-f]{32}", re.ASCII)
_SCHEDULED_STAMP, _MANUAL_STAMP, _MONTH = "%Y%m%dT%H%M%SZ", "%Y%m%dT%H%M%S.%fZ", "%Y-%m"


class NotABackupId(BackupError):
    """Text that no backup is called."""


@dataclass(frozen=True, order=True)
class BackupId:
    """The name of a schedule slot: type and end of the data interval, or type and moment of a manual run.

    An archive is named by its month (`moment` is its beginning) and its retention class, which no other backup has. It
    is only a name: order, retention and recovery go by the consistency point's time.
    """

    type: BackupType
    moment: datetime
    manual: bool = False
    retention_class: str = ""

    @classmethod
    def archive(cls, retention_class: str, month: datetime) -> Self:
        """The archive of one retention class for the month (UTC) that a moment is in."""
        begin = month.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return cls("archive", begin, retention_class=retention_class)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`full-20261122T000000Z`, `full-manual-20261122T103712.123456Z` or `archive-financial-2026-11`.

        Raises `NotABackupId`.
        """
        for pattern, stamp, manual in ((_SCHEDULED, _SCHEDULED_STAMP, False), (_MANUAL, _MANUAL_STAMP, True)):
            found = pattern.fullmatch(text)
            if found and found["type"] in ROLLING_TYPES and (moment := _moment(found["stamp"], stamp)):
                return cls(cast(BackupType, found["type"]), moment, manual)
        found = _ARCHIVE.fullmatch(text)
        if found and (moment := _moment(found["month"], _MONTH)):
            return cls.archive(found["class"], moment)
        raise NotABackupId(
            f"{text!r} is not a backup's id.",
            mend="It looks like full-20261122T000000Z; `python -m include.cli list` shows what there is.",
        )

    def __str__(self) -> str:
        if self.type == "archive":
            return f"archive-{self.retention_class}-{self.moment.astimezone(UTC):{_MONTH}}"
        if self.manual:
            return f"{self.type}-manual-{self.moment.astimezone(UTC).strftime(_MANUAL_STAMP)}"
        return f"{self.type}-{self.moment.astimezone(UTC).strftime(_SCHEDULED_STAMP)}"

    @property
    def manifest_key(self) -> str:
        """Where the manifest that commits this backup lies."""
        return f"{MANIFESTS}{self.type}/{self}.json"

    def attempt_prefix(self, attempt: str) -> str:
        """Where everything that one try writes lies, but for packs, keys and the manifest; of an archive packs, too."""
        if self.type == "archive":
            return f"archive/{self.retention_class}/{self.moment.astimezone(UTC):{_MONTH}}/{self}/{attempt}/"
        return f"{self.type}/{self.moment.astimezone(UTC):%Y/%m/%d}/{self}/{attempt}/"

    @property
    def tags(self) -> dict[str, str]:
        """What its stored objects are tagged with: an archive's class and month, by which a store can bill and find."""
        if self.type != "archive":
            return {}
        return {"retention-class": self.retention_class, "month": f"{self.moment.astimezone(UTC):{_MONTH}}"}


def _moment(text: str, pattern: str) -> datetime | None:
    try:
        return datetime.strptime(text, pattern).replace(tzinfo=UTC)
    except ValueError:
        return None


MANIFESTS, PACKS, KEYS = "manifests/", "packs/", "keys/"
ARCHIVE_MANIFESTS = f"{MANIFESTS}archive/"
PROBES = "state/probe-"
VERIFICATION = "verification/"
WAL, LEDGER = "wal/", "ledger/"
SHREDDED = "shredded/"
DRILLS = "drills/"
HOLDS, DELETED = "holds/", "deleted/"
VALIDATIONS = "reports/validations/"
READING, RETENTION_RUNS = "state/reading/", "state/retention/"
_ENVELOPE = re.compile(r"keys/(?P<owner>[^/]+)/(?P<attempt>[^/]+)/(?P<kek>[^/]+)\.json")
_WAL = re.compile(
    r"wal/(?P<system>\d+)/(?P<timeline>[0-9A-F]{8})/(?P<name>(?P=timeline)(?:[0-9A-F]{16}|\.history))"
    r"\.(?P<attempt>[0-9a-f]{16})\.zst\.enc",
    re.ASCII,
)


def new_attempt() -> str:
    """A name that no other try has: 64 random bits. With an id it stays below PostgreSQL's 63 bytes for a name."""
    return secrets.token_hex(8)


def new_pack_id() -> str:
    """A name that no other pack has: 128 random bits."""
    return secrets.token_hex(16)


def pack_key(pack_id: str) -> str:
    """Where a pack lies."""
    return f"{PACKS}{pack_id}"


def envelope_prefix(owner: str, attempt: str) -> str:
    """Under which every wrap of one data key lies: one object a key-encryption key."""
    return f"{KEYS}{owner}/{attempt}/"


def envelope_key(owner: str, attempt: str, kek_id: str) -> str:
    """Where one wrap of a data key lies."""
    return f"{envelope_prefix(owner, attempt)}{kek_id}.json"


def envelope_place(key: str) -> tuple[str, str, str] | None:
    """The inverse of `envelope_key`: owner, attempt and KEK; None for a stranger's object."""
    found = _ENVELOPE.fullmatch(key)
    return (found["owner"], found["attempt"], found["kek"]) if found else None


def wal_owner(system_identifier: str) -> str:
    """Whose the data keys of one cluster's WAL are."""
    return f"wal-{system_identifier}"


def wal_prefix(system_identifier: str) -> str:
    """Under which all WAL of one cluster lies."""
    return f"{WAL}{system_identifier}/"


def wal_key(system_identifier: str, name: str, attempt: str) -> str:
    """Where one shipped copy of a segment or of a history file lies."""
    return f"{wal_prefix(system_identifier)}{timeline_of(name):08X}/{name}.{attempt}.zst.enc"


@dataclass(frozen=True)
class WalPlace:
    """What a key below `wal/` says: whose segment or history file, and which attempt shipped it."""

    system_identifier: str
    name: str
    attempt: str


def wal_place(key: str) -> WalPlace | None:
    """The inverse of `wal_key`; None for a stranger's object."""
    found = _WAL.fullmatch(key)
    return WalPlace(found["system"], found["name"], found["attempt"]) if found else None


def gap_prefix(system_identifier: str) -> str:
    """Under which the declared gaps of one cluster lie."""
    return f"{LEDGER}{system_identifier}/"


@dataclass(frozen=True)
class Place:
    """Whose an object is, as its key says: a segment, a pack or an envelope.

    `backup` is None for a shared pack and its envelopes, `pack` for everything else, an archive's own packs among it;
    only a shared pack's key does not say which attempt wrote it.
    """

    attempt: str | None
    backup: BackupId | None = None
    pack: str | None = None
    envelope: bool = False


def place_of(key: str) -> Place | None:
    """The inverse of the keys above; None for what no try writes (a manifest, a record, a stranger's object)."""
    if key.startswith(PACKS):
        pack = key.removeprefix(PACKS)
        return Place(None, pack=pack) if _PACK.fullmatch(pack) else None
    parts = key.split("/")
    if key.startswith(KEYS):
        if len(parts) != 4 or not _ATTEMPT.fullmatch(parts[2]):  # noqa: PLR2004 - keys/<owner>/<attempt>/<wrap>
            return None
        if _PACK.fullmatch(parts[1]):
            return Place(parts[2], pack=parts[1], envelope=True)
        owner = named_by(parts[1])
        return Place(parts[2], backup=owner, envelope=True) if owner else None
    # <type>/<Y>/<m>/<d>/<id>/<attempt>/…, or archive/<class>/<month>/<id>/<attempt>/…
    at = 3 if key.startswith("archive/") else 4
    if len(parts) < at + 3 or not _ATTEMPT.fullmatch(parts[at + 1]):
        return None
    owner, attempt = named_by(parts[at]), parts[at + 1]
    return Place(attempt, backup=owner) if owner and key.startswith(owner.attempt_prefix(attempt)) else None


def named_by(text: str) -> BackupId | None:
    """The backup of that name, None where it is no id."""
    try:
        return BackupId.parse(text)
    except NotABackupId:
        return None
