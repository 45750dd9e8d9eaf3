"""What a bucket tells retention: its manifests in short, what was proved of them, holds, gaps, log, who reads.

A second look reads only what came since the first one: it is taken again and again while backups are deleted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice

from include.errors import BackupError
from include.pipeline.store import ObjectMissing, ObjectVersion
from include.policy import Policy
from include.repository.catalog import Catalog, oldest
from include.repository.committed import Committed
from include.repository.holds import judge_holds
from include.repository.layout import HOLDS, LEDGER, MANIFESTS, VERIFICATION, WAL, wal_place
from include.repository.leases import living
from include.repository.ledger import Gap, GapRefused
from include.repository.lsn import is_history, timeline_of
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.retention import View, WalCopy
from include.repository.timelines import TimelineHistory
from include.repository.tombstones import read_tombstones
from include.repository.verification import Verification, read_verifications
from include.repository.wal import Shipped, WalArchive

log = logging.getLogger(__name__)

_AT_ONCE = 16
_BATCH = 256
"""Manifests that are whole in memory at once; of each only its short form is kept."""


class Survey:
    """Looks at one bucket. What it cannot look at ends the look: nothing is judged by half of one."""

    def __init__(self, catalog: Catalog, policy: Policy) -> None:
        self._catalog, self._policy = catalog, policy
        self._manifests: dict[tuple[str, str], Committed | bytes] = {}
        self._proved: dict[tuple[str, str], tuple[tuple[str, ...], Verification]] = {}
        self._gaps: dict[str, Gap | None] = {}
        self._histories: dict[str, TimelineHistory] = {}

    def look(self, now: datetime) -> View:
        """Everything as it is now; raises `StoreError`.

        Manifests are listed after what they name, so that what is committed meanwhile counts; holds and readers last.
        """
        bucket, keyring = self._catalog.bucket, self._catalog.keyring
        tombstones = read_tombstones(bucket, keyring)
        wal = [WalCopy(each.key, each.size, each.modified) for each in oldest(bucket.versions(WAL))]
        gaps = self._look_at_gaps()
        committed, refused = self._look_at_manifests()
        backups = self._look_at_proofs(committed)
        there = {(each.id, each.attempt) for each in backups}
        return View(
            backups=backups,
            refused=refused,
            gaps=gaps,
            histories=self._look_at_histories(wal),
            tombstones=[
                each
                for each in tombstones.values()
                if (each.backup, each.attempt) not in there and each.id.manifest_key not in refused
            ],
            wal=wal,
            holds=judge_holds(bucket, keyring, bucket.versions(HOLDS)),
            readings=living(bucket, self._policy.storage.retention.lease, now),
        )

    def _look_at_manifests(self) -> tuple[list[Committed], dict[str, bytes]]:
        there = {
            (version.key, version.version_id): version for version in oldest(self._catalog.bucket.versions(MANIFESTS))
        }
        new = iter([version for place, version in there.items() if place not in self._manifests])
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="survey") as pool:
            while batch := list(islice(new, _BATCH)):
                for version, read in zip(batch, pool.map(self._read, batch), strict=True):
                    if read is not None:
                        self._manifests[version.key, version.version_id] = read
        found = {key: self._manifests[key, version] for key, version in there if (key, version) in self._manifests}
        committed = [each for each in found.values() if isinstance(each, Committed)]
        return committed, {key: each for key, each in found.items() if isinstance(each, bytes)}

    def _read(self, version: ObjectVersion) -> Committed | bytes | None:
        """A manifest in short, the bytes of one that is refused, or None for one that went while we looked."""
        try:
            stored = self._catalog.bucket.read(version.key, version_id=version.version_id)
        except ObjectMissing:
            return None
        try:
            return Committed.of(Manifest.open(stored, self._catalog.keyring, key=version.key))
        except ManifestRefused as refused:
            log.warning("It may name anything, so that stays: %s", refused)
            return stored

    def _look_at_proofs(self, backups: Iterable[Committed]) -> list[Committed]:
        """With what was proved of each; read anew only where a record came."""
        listed: dict[str, list[ObjectVersion]] = defaultdict(list)
        for version in oldest(self._catalog.bucket.versions(VERIFICATION)):
            listed[version.key.split("/")[1]].append(version)
        names = {backup: tuple(version.key for version in versions) for backup, versions in listed.items()}
        told = {(each.id, each.attempt): each for each in backups}
        changed = [
            each for place, each in told.items() if self._proved.get(place, ((), None))[0] != names.get(each.id, ())
        ]
        records = [version for each in changed for version in listed[each.id]]
        known = read_verifications(self._catalog.bucket, self._catalog.keyring, changed, records)
        for each in changed:
            self._proved[each.id, each.attempt] = names.get(each.id, ()), known[each.id]
        unproved = ((), Verification())
        return [each.proved(self._proved.get(place, unproved)[1]) for place, each in told.items()]

    def _look_at_gaps(self) -> list[Gap]:
        """Those that are genuine. Without one that is not, more stays."""
        bucket = self._catalog.bucket
        for version in oldest(bucket.versions(LEDGER)):
            if version.key not in self._gaps:
                try:
                    stored = bucket.read(version.key, version_id=version.version_id)
                    self._gaps[version.key] = Gap.open(stored, self._catalog.keyring, key=version.key)
                except GapRefused as refused:
                    log.warning("A declared gap is passed over: %s", refused)
                    self._gaps[version.key] = None
        return [gap for gap in self._gaps.values() if gap is not None]

    def _look_at_histories(self, wal: Iterable[WalCopy]) -> dict[str, dict[int, TimelineHistory]]:
        """Every timeline's history of which some copy can be read."""
        found: dict[str, dict[int, TimelineHistory]] = defaultdict(dict)
        for copy in wal:
            place = wal_place(copy.key)
            if place is None or not is_history(place.name):
                continue
            system, timeline = place.system_identifier, timeline_of(place.name)
            if timeline not in found[system] and (history := self._history(copy)) is not None:
                found[system][timeline] = history
        return found

    def _history(self, copy: WalCopy) -> TimelineHistory | None:
        place = wal_place(copy.key)
        assert place is not None  # noqa: S101 - it was listed as one
        if copy.key not in self._histories:
            archive = WalArchive(
                self._catalog.bucket, self._catalog.keyring, place.system_identifier, policy=self._policy.pipeline
            )
            try:
                text = b"".join(archive.read(Shipped(place.name, place.attempt, copy.size, copy.modified))).decode()
                self._histories[copy.key] = TimelineHistory.parse(timeline_of(place.name), text)
            except (BackupError, ValueError) as refused:
                log.warning("%s is passed over: %s", copy.key, refused)
        return self._histories.get(copy.key)
