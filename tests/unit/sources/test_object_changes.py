"""What belongs to an increment: a base and its changes are the objects as of every second between."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from include.pipeline.store import ObjectVersion
from include.sources.objects import Deletion, IndexEntry, change_lines, objects_as_of, objects_between, parse_changes

EPOCH = datetime(2026, 11, 22, tzinfo=UTC)
LAST = 12

events = st.lists(st.tuples(st.integers(0, LAST), st.sampled_from("ab"), st.booleans()), max_size=14)
"""What happened in the store, in its order: the second, the key, and whether the key was deleted or written."""


def listing(history: Iterable[tuple[int, str, bool]]) -> list[ObjectVersion]:
    """As a store lists it: by key, the newest first."""
    versions = [
        ObjectVersion(key, str(number), EPOCH + timedelta(seconds=second), 1, "e", deleted, latest=False)
        for number, (second, key, deleted) in enumerate(history)
    ]
    return sorted(versions, key=lambda version: (version.key, -int(version.version_id)))


def as_of(base: list[ObjectVersion], backups: list[list[ObjectVersion]], moment: datetime) -> set[tuple[str, str]]:
    """The objects as of a moment, by what `docs/format.md` says of a base and the changes after it."""
    told: dict[tuple[str, datetime], list[ObjectVersion]] = {(each.key, each.modified): [each] for each in base}
    for changes in backups:  # the later backup's word on a key and second is the one that counts
        told |= {
            place: [each for each in changes if (each.key, each.modified) == place]
            for place in {(each.key, each.modified) for each in changes}
        }
    found = set()
    for key in {key for key, _ in told}:
        for place in sorted((place for place in told if place[0] == key and place[1] <= moment), reverse=True):
            versions = [each for each in told[place] if not each.deleted]
            hidden = place[1] < moment and any(each.deleted for each in told[place])
            if versions and not hidden:
                found.add((key, versions[0].version_id))
            if versions or hidden:
                break
    return found


@given(events, st.data())
def test_a_base_and_the_changes_after_it_are_the_objects_of_every_second_between(
    history: list[tuple[int, str, bool]], data: st.DataObject
) -> None:
    history.sort(key=lambda event: event[0])
    points = sorted(data.draw(st.lists(st.integers(0, LAST), min_size=2, max_size=4), label="points"))
    listed: list[list[tuple[int, str, bool]]] = []
    # each listing is made in the second of its point or later, when part of that second may be to come
    for point in points:
        earlier = sum(second < point for second, _, _ in history)
        within = sum(second == point for second, _, _ in history)
        seen = earlier + data.draw(st.integers(0, within), label="of the border second")
        listed.append(history[: max(seen, len(listed[-1]) if listed else 0)])  # no listing sees less than one before it
    moments = [EPOCH + timedelta(seconds=point) for point in points]
    base = list(objects_as_of(listing(listed[0]), moments[0]))
    changes = [
        list(objects_between(listing(seen), since, moment))
        for seen, since, moment in zip(listed[1:], moments, moments[1:], strict=False)
    ]
    for second in range(points[0], points[-1]):
        moment = EPOCH + timedelta(seconds=second)
        true = {(each.key, each.version_id) for each in objects_as_of(listing(history), moment)}
        assert as_of(base, changes, moment) == true
    true = {(each.key, each.version_id) for each in objects_as_of(listing(listed[-1]), moments[-1])}
    assert as_of(base, changes, moments[-1]) == true


@given(events)
def test_of_one_key_and_second_there_is_at_most_one_version_and_one_deletion(
    history: list[tuple[int, str, bool]],
) -> None:
    history.sort(key=lambda event: event[0])
    told = list(objects_between(listing(history), EPOCH, EPOCH + timedelta(seconds=LAST)))
    assert len({(each.key, each.modified, each.deleted) for each in told}) == len(told)


def test_an_upload_that_was_under_way_belongs_to_the_window_in_which_it_was_completed() -> None:
    completed = listing([(3, "a", False), (3, "b", False)])  # dated from its beginning
    window = EPOCH + timedelta(seconds=6), EPOCH + timedelta(seconds=9)
    assert list(objects_between(completed, *window)) == []
    uploading = {"a": EPOCH + timedelta(seconds=3, microseconds=500)}
    assert [each.key for each in objects_between(completed, *window, uploading=uploading)] == ["a"]


def test_changes_are_read_as_they_are_written() -> None:
    written = IndexEntry(
        key="uploads/ä",
        version_id="1",
        modified=EPOCH,
        etag="e",
        size=0,
        sha256="s",
        headers={},
        metadata={},
        tags={},
        members=(),
    )
    deleted = Deletion(key="uploads/ä", version_id="2", modified=EPOCH)
    lines = b"".join(change_lines([written, deleted]))
    assert lines.splitlines()[1].decode() == (
        '{"key":"uploads/ä","version_id":"2","modified":"2026-11-22T00:00:00Z","deleted":true}'
    )
    assert list(parse_changes(lines[i : i + 7] for i in range(0, len(lines), 7))) == [written, deleted]
