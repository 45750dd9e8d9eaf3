"""Whose turn it is: one component a day, the same for every try, and all of them within the retention (R4.5)."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.backup.sample import _choose, named, turn_of
from include.errors import BackupError
from include.policy import load_policy
from include.repository.contents import component_dump, configuration_files
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sources.objects import IndexEntry
from tests.manifests import MIDNIGHT, make

POLICY = load_policy()
NAMES = [component.name for component in POLICY.sample_turns]


def backup(day: int = 0, *, lacks: tuple[str, ...] = ()) -> Manifest:
    """A backup with everything of every component but some."""
    held = [component for component in POLICY.sample_turns if component.name not in lacks]
    [artifact], [pack] = make().artifacts, make().packs
    names = [component_dump(each.name) for each in held if each.source == "database"]
    names += [configuration_files(each.name) for each in held if each.files]
    return make(
        day,
        artifacts=tuple(artifact.model_copy(update={"name": name}) for name in names),
        packs=tuple(pack.model_copy(update={"component": each.name}) for each in held if each.source == "objects"),
    )


@pytest.mark.requirement("R4.5")
@pytest.mark.parametrize("first", [0, 17, 200])
def test_every_component_takes_its_turn_and_all_of_them_within_the_retention(first: int) -> None:
    turns = [turn_of(backup(day), POLICY) for day in range(first, first + len(NAMES))]

    assert sorted(turn.component.name for turn in turns) == sorted(NAMES)
    assert POLICY.backups.full.retention.after(MIDNIGHT) >= MIDNIGHT + timedelta(days=len(turns))


def test_another_try_and_another_backup_of_the_day_take_the_same() -> None:
    scheduled = backup(3)
    manual = scheduled.model_copy(
        update={"id": str(BackupId("full", MIDNIGHT + timedelta(days=3, hours=15), manual=True))}
    )
    assert turn_of(scheduled, POLICY) == turn_of(backup(3), POLICY) == turn_of(manual, POLICY)


@given(day=st.integers(0, 1000), lacks=st.sets(st.sampled_from(NAMES)))
def test_of_what_is_not_there_the_turn_goes_to_the_next_and_that_is_said(day: int, lacks: set[str]) -> None:
    lacks.discard("system_settings")  # the repository is always there
    whole, turn = turn_of(backup(day), POLICY), turn_of(backup(day, lacks=tuple(lacks)), POLICY)

    assert turn.component.name not in lacks
    assert set(turn.absent) <= lacks
    order = [*NAMES[NAMES.index(whole.component.name) :], *NAMES]
    assert [*turn.absent, turn.component.name] == order[: len(turn.absent) + 1]


def test_a_component_is_called_by_its_name_and_one_that_is_not_there_is_refused() -> None:
    assert named(backup(), POLICY, "media_files").component.source == "objects"
    for name in ("media_files", "nothing"):
        with pytest.raises(BackupError, match=name) as refused:
            named(backup(lacks=("media_files",)), POLICY, name)
        assert "user_data" in refused.value.mend


def entry(number: int) -> IndexEntry:
    return IndexEntry.model_validate_json(
        json.dumps(
            {
                "key": f"uploads/{number}",
                "version_id": "1",
                "modified": MIDNIGHT.isoformat(),
                "etag": "e",
                "size": 0,
                "sha256": "s",
                "headers": {},
                "metadata": {},
                "tags": {},
                "members": [],
            }
        )
    )


@given(present=st.integers(0, 60), wanted=st.integers(1, 20), seed=st.text())
def test_objects_are_chosen_once_each_and_the_same_again(present: int, wanted: int, seed: str) -> None:
    entries = [entry(number) for number in range(present)]
    chosen = _choose(entries, wanted, seed=seed)

    assert len(chosen) == len({each.key for each in chosen}) == min(present, wanted)
    assert set(chosen_keys := [each.key for each in chosen]) <= {each.key for each in entries}
    assert chosen_keys == [each.key for each in _choose(iter(entries), wanted, seed=seed)]


def test_every_object_has_its_chance() -> None:
    entries = [entry(number) for number in range(40)]
    seen = {each.key for day in range(200) for each in _choose(entries, 5, seed=f"day {day}")}
    assert len(seen) == 40
