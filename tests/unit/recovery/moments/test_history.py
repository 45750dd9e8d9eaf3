"""Objects as of any moment: a listing and the changes after it say what the store's whole listing says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.progress import Progress
from include.pipeline.store import ObjectVersion
from include.policy import load_policy
from include.recovery.moments.history import ObjectHistory
from include.recovery.moments.plan import ObjectsSource, RecoveryPlan, Skew
from include.recovery.moments.restore import written_after
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import object_changes, object_index
from include.sources.objects import (
    Deletion,
    IndexEntry,
    change_lines,
    objects_as_of,
    objects_between,
)
from tests.manifests import make

POLICY, MANIFEST, PROGRESS = load_policy(), make(), Progress("a test")
EPOCH = datetime(2026, 11, 22, tzinfo=UTC)
LAST = 12
COMPONENT = "user_uploads"

Event = tuple[int, str, bool]
events = st.lists(
    st.tuples(st.integers(0, LAST), st.sampled_from(["uploads/a", "uploads/b"]), st.booleans()), max_size=14
)
"""What happened in the store, in its order: the second, the key, and whether the key was deleted or written."""


def at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


def listing(history: Iterable[Event]) -> list[ObjectVersion]:
    """As a store lists it: by key, the newest first."""
    versions = [
        ObjectVersion(key, str(number), at(second), 1, "e", deleted, latest=False)
        for number, (second, key, deleted) in enumerate(history)
    ]
    return sorted(versions, key=lambda version: (version.key, -int(version.version_id)))


def lines(versions: Iterable[ObjectVersion]) -> list[IndexEntry | Deletion]:
    return [
        Deletion(key=one.key, version_id=one.version_id, modified=one.modified)
        if one.deleted
        else IndexEntry(
            key=one.key,
            version_id=one.version_id,
            modified=one.modified,
            etag=one.etag,
            size=one.size,
            sha256="s",
            headers={},
            metadata={},
            tags={},
            members=(),
        )
        for one in versions
    ]


class Held(OpenedBackup):
    """A backup whose one artifact is in memory."""

    def __init__(self, told: list[IndexEntry | Deletion], *, whole: bool) -> None:
        self._told, self._whole = told, whole

    def has(self, name: str) -> bool:
        return name == (object_index(COMPONENT) if self._whole else object_changes(COMPONENT))

    def read(self, name: str) -> Iterator[bytes]:
        assert self.has(name)
        return change_lines(self._told)

    def object_components(self) -> list[str]:
        return [COMPONENT] if self._whole else []


def history_of(
    catalog: Catalog,
    second: int,
    base: Held,
    increments: list[Held],
    later: list[Held],
    *,
    named: frozenset[str] = frozenset(),
) -> ObjectHistory:
    history = ObjectHistory(
        ObjectsSource(MANIFEST, (), (), at(second)), catalog, policy=POLICY, progress=PROGRESS, named=named
    )
    history._base, history._increments, history._later = (
        base,
        cast("list[OpenedBackup]", increments),
        cast("list[OpenedBackup]", later),
    )
    return history


@settings(deadline=None)
@given(events, st.data())
def test_every_second_has_the_objects_that_the_store_had(history: list[Event], data: st.DataObject) -> None:
    history.sort(key=lambda event: event[0])
    points = sorted(data.draw(st.lists(st.integers(0, LAST), min_size=2, max_size=5), label="points"))
    named = data.draw(st.frozensets(st.sampled_from(["uploads/a", "uploads/b", "uploads/c"])), label="named")
    seen = []  # each listing is made in the second of its point, when part of that second may be to come
    for point in points:
        earlier = sum(second < point for second, _, _ in history)
        within = sum(second == point for second, _, _ in history)
        seen.append(history[: earlier + data.draw(st.integers(0, within), label="of the border second")])
    base_at = data.draw(st.integers(points[0], points[-1]), label="the whole listing")
    earlier = sum(second < base_at for second, _, _ in history)
    within = sum(second == base_at for second, _, _ in history)
    listed_then = history[: earlier + data.draw(st.integers(0, within), label="of the listing's second")]
    base = Held(lines(objects_as_of(listing(listed_then), at(base_at), named=named)), whole=True)
    changes = [
        (until, Held(lines(objects_between(listing(listed), at(since), at(until))), whole=False))
        for listed, since, until in zip(seen[1:], points, points[1:], strict=False)
        if until > base_at
    ]
    for second in range(base_at, points[-1]):
        covering = next((number for number, (until, _) in enumerate(changes, start=1) if until > second), 0)
        held = [one for _, one in changes]
        found = history_of(cast("Catalog", None), second, base, held[:covering], held[covering:], named=named)
        told = list(found.objects(COMPONENT))
        whole = [version for version in listing(seen[-1]) if version.modified <= at(points[-1])]
        true = {version.key: version for version in objects_as_of(whole, at(second), named=named)}
        assert sorted(entry.key for entry in told) == sorted(true)
        for entry in told:
            version = true[entry.key]
            assert entry.modified == version.modified
            # Of one key and second a later look sees the newest version only.
            assert entry.modified > at(second) or entry.version_id == version.version_id


def test_of_a_second_that_two_backups_saw_the_later_one_is_right() -> None:
    """In one second an object was deleted, a backup's listing made, and the object written again."""
    history = [(1, "uploads/a", False), (5, "uploads/a", True), (5, "uploads/a", False)]
    base = Held(lines(objects_as_of(listing(history[:1]), at(2))), whole=True)
    first = Held(lines(objects_between(listing(history[:2]), at(2), at(5))), whole=False)
    second = Held(lines(objects_between(listing(history), at(5), at(9))), whole=False)
    found = history_of(cast("Catalog", None), 7, base, [first, second], [])
    assert [entry.version_id for entry in found.objects(COMPONENT)] == ["2"]


@pytest.mark.requirement("R5.2", "R5.5")
def test_only_what_no_backup_tells_of_was_written_after_the_last_one() -> None:
    """Somebody deleted an object that the database names; another one was uploaded after the last backup."""
    history = [(1, "uploads/a", False), (3, "uploads/a", True), (9, "uploads/c", False)]
    base = Held(lines(objects_as_of(listing(history[:1]), at(2))), whole=True)
    change = Held(lines(objects_between(listing(history[:2]), at(2), at(5))), whole=False)
    found = history_of(cast("Catalog", None), 5, base, [change], [], named=frozenset({"uploads/a", "uploads/c"}))
    assert list(found.objects(COMPONENT)) == []
    for skew, unheld in ((timedelta(seconds=-1), ("uploads/c",)), (timedelta(), ()), (None, ())):
        plan = SimpleNamespace(skew=Skew(skew, None))
        assert written_after(cast("RecoveryPlan", plan), found, ["uploads/a", "uploads/c"]) == unheld
