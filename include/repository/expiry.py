"""Retention carried out: planned and shown, then deleted for good, and resumed where somebody was killed.

Of each backup first a tombstone is written, then it is asked once more who holds or reads it; then the manifest goes,
every version of it, the oldest last; then artifacts and packs, then what was proved of it, the keys last. What Object
Lock keeps stays with all that comes after it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from include.errors import Hopeless
from include.pipeline.store import Bucket, NotAllowed, ObjectVersion
from include.policy import Policy
from include.repository.catalog import Catalog, oldest
from include.repository.committed import Committed
from include.repository.holds import read_holds
from include.repository.layout import (
    DELETED,
    HOLDS,
    KEYS,
    LEDGER,
    MANIFESTS,
    READING,
    RETENTION_RUNS,
    VERIFICATION,
    WAL,
    BackupId,
    wal_owner,
)
from include.repository.leases import living
from include.repository.needs import Interval
from include.repository.retention import Decisions, Verdict, View, decide
from include.repository.retention_run import Deleted, RetentionRun, last_run
from include.repository.signed import writer
from include.repository.survey import Survey
from include.repository.tombstones import Tombstone, bury

log = logging.getLogger(__name__)

_AT_ONCE = 16
_TOLD = 10
_LOOK_EVERY = 25
"""Backups that are deleted between two looks at the whole bucket."""
_SESSION_KEYS = f"{KEYS}{wal_owner('')}"
_LOOSE = (WAL, _SESSION_KEYS, LEDGER, READING, RETENTION_RUNS)
"""What belongs to no one backup, in the order in which it is deleted: log before the keys that open it."""


class CatalogShrank(Hopeless):
    """A bucket that lacks backups or holds which the last run saw: nothing is deleted by such a listing."""


class NotDeleted(Hopeless):
    """What was to be deleted and could not be: no permission, or locked for longer than the policy bears."""


@dataclass(frozen=True)
class Plan:
    """What retention would do to one bucket now, before anything goes.

    `objects` and `bytes` count versions that go; `kept` the bytes that stay, by kind of reason (one object may count
    for several); `missing` what the last run saw and is not there.
    """

    bucket: str
    decisions: Decisions
    unfinished: tuple[Tombstone, ...]
    missing: tuple[str, ...]
    objects: int
    bytes: int
    kept: Counter[str]

    @property
    def going(self) -> tuple[Committed, ...]:
        """The backups that go, the newest first."""
        return self.decisions.going

    @property
    def moments_lost(self) -> list[Interval]:
        """The moments that can be restored now, and could not then."""
        return self.decisions.moments_lost

    def to_json(self) -> dict[str, Any]:
        """The same for a program; moments in ISO 8601, sizes in bytes."""
        verdicts = self.decisions.backups
        return {
            "bucket": self.bucket,
            "now": self.decisions.now.isoformat(),
            "goes": [
                {"id": each.id, "time": each.time.isoformat(), "stored_bytes": each.stored_bytes} for each in self.going
            ],
            "unfinished": [each.backup for each in self.unfinished],
            "stays": {each.id: _told(verdicts[each.id]) for each in self.decisions.staying},
            "objects": self.objects,
            "bytes": self.bytes,
            "kept_bytes": dict(self.kept),
            "restorable": _spelled(self.decisions.restorable),
            "restorable_after": _spelled(self.decisions.restorable_after),
            "moments_lost": _spelled(self.moments_lost),
            "missing": list(self.missing),
        }

    def facts(self) -> dict[str, Any]:
        """The same in short, for an XCom: how many, how much, and the moments."""
        return {
            "bucket": self.bucket,
            "backups_going": len(self.going),
            "backups_staying": len(self.decisions.staying),
            "unfinished": len(self.unfinished),
            "objects_going": self.objects,
            "bytes_going": self.bytes,
            "restorable_after": _spelled(self.decisions.restorable_after)[-_TOLD:],
            "moments_lost": _spelled(self.moments_lost)[-_TOLD:],
        }


@dataclass
class Outcome:
    """What a run did. `put_off` says why a backup that was to go is still there; `locked` what Object Lock keeps, and
    since when it was to be gone; `refused` what the store would not delete for any other reason. `all_done` is false
    when the policy's bound was reached: the next run goes on.
    """

    deleted: list[Deleted] = field(default_factory=list)
    objects: int = 0
    put_off: dict[str, str] = field(default_factory=dict)
    locked: dict[str, datetime] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    all_done: bool = True
    record: str = ""

    def facts(self) -> dict[str, Any]:
        """For an XCom."""
        return {
            "backups_deleted": len(self.deleted),
            "bytes_deleted": sum(each.stored_bytes for each in self.deleted),
            "objects_deleted": self.objects,
            "put_off": dict(islice(self.put_off.items(), _TOLD)),
            "locked": len(self.locked),
            "all_done": self.all_done,
            "record": self.record,
        }

    def require(self, policy: Policy, now: datetime) -> None:
        """Raise `NotDeleted` for what was refused, and for what is locked and longer overdue than is borne (R6.5)."""
        bearable = policy.monitoring.warnings.retention_violation.overdue
        overdue = [each for each, since in self.locked.items() if bearable.after(since) < now]
        if overdue:
            raise NotDeleted(
                f"{len(overdue)} backups are kept by Object Lock for longer than {bearable} beyond their time: "
                f"{', '.join(overdue[:3])}.",
                mend="Their locks end later than their retention: make `retain until` follow the policy; these wait.",
            )
        if self.refused:
            raise NotDeleted(
                f"{len(self.refused)} objects could not be deleted: {self.refused[0]}",
                mend="Give the login the right to list and delete versions; the next run goes on.",
            )


class Retention:
    """Retention of one bucket, by its own catalog; of a replica, nothing goes that the `primary` still shows.

    It would be brought again. What the primary has lost goes by the replica's own catalog alone.
    """

    def __init__(self, catalog: Catalog, policy: Policy, *, primary: Catalog | None = None) -> None:
        self._catalog, self._policy, self._primary = catalog, policy, primary
        self._bucket: Bucket = catalog.bucket
        self._survey = Survey(catalog, policy)
        self._seen: set[str] = set()

    def plan(self) -> Plan:
        """Look, decide, and count; nothing is written. Raises what the store raises: half a look is none."""
        view, decisions = self._look()
        last = last_run(self._bucket, self._catalog.keyring)
        objects = size = 0
        kept: Counter[str] = Counter()
        for version in self._bucket.versions(""):
            verdict = decisions.of(version.key, version.modified)
            if verdict.stays:
                kept.update(dict.fromkeys({reason.kind for reason in verdict.reasons}, version.size))
            else:
                objects, size = objects + 1, size + version.size
        return Plan(
            bucket=self._bucket.name,
            decisions=decisions,
            unfinished=tuple(view.tombstones),
            missing=tuple(_missing({*last.manifests, *last.holds}, self._there(view), view)) if last else (),
            objects=objects,
            bytes=size,
            kept=kept,
        )

    def apply(self, plan: Plan, *, accept_missing: bool = False) -> Outcome:
        """Delete what was planned and still goes, up to the policy's bound; write down what was done.

        Raises `CatalogShrank`, with nothing gone, unless `accept_missing`; and what the store raises: what is gone by
        then is told by tombstones, and the next run goes on.
        """
        run = _Run(self._catalog, self._policy, planned={each.id for each in plan.going})
        last = last_run(self._bucket, self._catalog.keyring)
        if last is not None and not accept_missing:
            self._seen = {*last.manifests, *last.holds}
        view, decisions = self._look_whole()
        run.begin(decisions)
        for tombstone in view.tombstones:
            run.finish(tombstone)
        while few := run.next_few():
            for backup in few:
                run.delete(backup)
            run.begin(self._look_whole()[1])
        run.tidy()
        return run.write_down(self._seen, last)

    def _look(self) -> tuple[View, Decisions]:
        now = self._bucket.clock()
        view = self._survey.look(now)
        if self._primary is not None:
            view = replace(view, mirrored=frozenset(str(each) for each in self._primary.ids()))
        return view, decide(view, self._policy, now)

    def _look_whole(self) -> tuple[View, Decisions]:
        """A look that tells everything that the last one told, but for what is being deleted."""
        view, decisions = self._look()
        there = self._there(view)
        if missing := _missing(self._seen, there, view):
            raise CatalogShrank(
                f"{self._bucket} lacks {len(missing)} of what the last look of retention saw, and that nobody said "
                f"would go: {', '.join(missing[:3])}.",
                mend="Nothing more was deleted. If the listing is wrong, mend the store; if they are lost, bring them "
                "back from the other bucket. If they were deleted on purpose: `retention --apply --accept-missing`.",
            )
        self._seen = there
        return view, decisions

    def _there(self, view: View) -> set[str]:
        """The keys of all manifests, and of every hold and release."""
        manifests = {BackupId.parse(each.id).manifest_key for each in view.backups}
        return {*manifests, *view.refused, *(version.key for version in oldest(self._bucket.versions(HOLDS)))}


def _missing(seen: set[str], there: set[str], view: View) -> list[str]:
    """What was seen, nobody said would be deleted, and is not there."""
    given_up = {each.backup for each in view.tombstones}
    return sorted(key for key in seen - there if _backup_of(key) not in given_up)


class _Run:
    """One run that deletes."""

    def __init__(self, catalog: Catalog, policy: Policy, *, planned: set[str]) -> None:
        self._catalog, self._bucket, self._policy = catalog, catalog.bucket, policy
        self._planned, self._tried = planned, set[str]()
        self._left = policy.storage.retention.deletions_per_run
        self._finished: list[Tombstone] = []
        self._outcome = Outcome()

    def begin(self, decisions: Decisions) -> None:
        """Go on by a new look."""
        self._decisions = decisions
        self._going = {each.id for each in decisions.going}
        # What is to go and is there still names these: they go with the last of it.
        self._named = Counter(key for each in decisions.going for key in each.shared)
        self._named.update(prefix for each in decisions.going for prefix in each.envelopes)

    def next_few(self) -> list[Committed]:
        """Some of the backups that were planned to go, still do, and were not tried yet; the newest first."""
        if self._left <= 0:
            self._outcome.all_done = False
            return []
        wanted = self._planned - self._tried
        few = list(islice((each for each in self._decisions.going if each.id in wanted), _LOOK_EVERY))
        self._tried |= {each.id for each in few}
        return few

    def delete(self, backup: Committed) -> None:
        """One backup, from its manifest to its keys, unless somebody holds or reads it by now."""
        if self._left <= 0:
            self._outcome.all_done = False
            return
        tombstone = Tombstone.of(backup, bucket=self._bucket.name, deleted=self._bucket.clock())
        bury(self._bucket, self._catalog.keyring, tombstone)
        if words := self._needed_after_all(backup):
            log.info("%s is put off: %s", backup.id, words)
            self._outcome.put_off[backup.id] = words
            self._unbury(tombstone.home)
            return
        manifest = BackupId.parse(backup.id).manifest_key
        versions = [version for version in self._bucket.versions(manifest) if version.key == manifest]
        # One by one, newest first: what a late writer left must never become the oldest version, which is the backup.
        if not all(self._delete([version], backup.id) for version in versions):
            self._unbury(tombstone.home)
            return
        log.info("%s, of %s, is deleted.", backup.id, backup.time.isoformat())
        self._outcome.deleted.append(Deleted(backup=backup.id, time=backup.time, stored_bytes=backup.stored_bytes))
        self._named.subtract(backup.shared)
        self._named.subtract(backup.envelopes)
        self.finish(tombstone)

    def finish(self, tombstone: Tombstone) -> None:
        """Everything that a deleted manifest left: content, then records, then keys; each only when all before is gone.

        What it shares with a backup that is there goes with the last that names it.
        """
        backup = tombstone.backup
        content = (*tombstone.own_prefixes, *tombstone.shared)
        records = (f"{VERIFICATION}{backup}/", f"{HOLDS}{backup}/")
        keys = tuple(prefix for prefix in tombstone.envelopes if not prefix.startswith(_SESSION_KEYS))
        for prefixes in (content, records, keys):
            if not self._delete(self._that_go(prefixes), backup):
                return
        self._finished.append(tombstone)

    def tidy(self) -> None:
        """What belongs to no one backup, and is needed by none that is there: log, gaps, old leases and records."""
        for prefix in _LOOSE:
            if not self._delete(self._that_go([prefix])):
                return

    def write_down(self, there: Iterable[str], last: RetentionRun | None) -> Outcome:
        """What was done, and what is there, for the next run; behind that the tombstones are of no use any more."""
        outcome, bucket = self._outcome, self._bucket
        now, before = bucket.clock(), last.locked if last else {}
        outcome.locked = {each: before.get(each, now) for each in outcome.locked}
        run = RetentionRun(
            bucket=bucket.name,
            when=now,
            by=writer(),
            manifests=tuple(sorted(key for key in there if key.startswith(MANIFESTS))),
            holds=tuple(sorted(key for key in there if key.startswith(HOLDS))),
            deleted=tuple(outcome.deleted),
            put_off=outcome.put_off,
            locked=outcome.locked,
            objects=outcome.objects,
        )
        bucket.create(run.home, run.sealed(self._catalog.keyring))
        outcome.record = run.home
        stays = {each.id for each in self._decisions.staying}
        stale = {version.key for version in bucket.versions(DELETED) if version.key.split("/")[1] in stays}
        for home in {*(tombstone.home for tombstone in self._finished), *stale}:
            self._unbury(home)
        return outcome

    def _needed_after_all(self, backup: Committed) -> str | None:
        """Who holds or reads it at this moment, in words."""
        bucket, lease = self._bucket, self._policy.storage.retention.lease
        held = read_holds(bucket, self._catalog.keyring, BackupId.parse(backup.id))
        return held.get(backup.id) or living(bucket, lease, bucket.clock()).of(backup.id)

    def _unbury(self, home: str) -> None:
        for version in list(self._bucket.versions(home)):
            self._bucket.delete_version(version.key, version.version_id)

    def _that_go(self, prefixes: Iterable[str]) -> Iterator[ObjectVersion]:
        """Every version below some prefixes that nothing keeps, and that nothing which is there still names."""
        for prefix in prefixes:
            for version in self._bucket.versions(prefix):
                named = version.key.rpartition("/")[0] + "/" if version.key.startswith(KEYS) else version.key
                if self._named[named] <= 0 and not self._decisions.of(version.key, version.modified).stays:
                    yield version

    def _delete(self, versions: Iterable[ObjectVersion], backup: str | None = None) -> bool:
        """Delete versions for good, many at once, up to the bound; whether all of them are gone.

        What stays is told: as `backup`'s where it is one's, else by its key.
        """
        rest, whole = iter(versions), True
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="retention") as pool:
            while few := list(islice(rest, max(min(self._left, _AT_ONCE * _AT_ONCE), 1))):
                if self._left <= 0:
                    self._outcome.all_done = False
                    return False
                self._left -= len(few)
                for version, refused in zip(few, pool.map(self._refusal, few), strict=True):
                    if refused is None:
                        self._outcome.objects += 1
                        continue
                    whole = False
                    if isinstance(refused, datetime):
                        self._outcome.locked[backup or version.key] = refused
                    else:
                        self._outcome.refused.append(refused)
        return whole

    def _refusal(self, version: ObjectVersion) -> datetime | str | None:
        """None when it is gone; until when it is locked; or what else the store said."""
        try:
            self._bucket.delete_version(version.key, version.version_id)
        except NotAllowed as refused:
            until = None if version.deleted else self._bucket.locked_until(version.key, version.version_id)
            return until if until and until > self._bucket.clock() else refused.what
        return None


def _backup_of(key: str) -> str:
    """The id in the key of a manifest, or of a hold."""
    return key.split("/")[1] if key.startswith(HOLDS) else key.rpartition("/")[2].removesuffix(".json")


def _told(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {"kind": reason.kind, "because": reason.words, "until": reason.until and reason.until.isoformat()}
        for reason in verdict.reasons
    ]


def _spelled(intervals: Iterable[Interval]) -> list[list[str]]:
    return [[each.since.isoformat(), each.until.isoformat()] for each in intervals]
