"""What a comparison finds, and how it says it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from include.sources.postgres.inventory import Inventory, LargeObjects, SequenceState, TableContent, compare

BEFORE = Inventory(
    {"public.a": TableContent(10, "1 2"), "public.b": TableContent(3, "-5 6")},
    {"public.a_id": SequenceState(10, True, 1, False)},
    LargeObjects(2, 100, "7 8"),
)


def with_tables(**tables: TableContent) -> Inventory:
    return replace(BEFORE, tables={f"public.{name}": table for name, table in tables.items()})


def with_sequence(state: SequenceState) -> Inventory:
    return replace(BEFORE, sequences={"public.a_id": state})


A, B = BEFORE.tables["public.a"], BEFORE.tables["public.b"]


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize(
    ("after", "differences"),
    [
        (BEFORE, []),
        (with_tables(a=TableContent(8, "1 2"), b=B), ["public.a: 2 rows fewer"]),
        (with_tables(a=TableContent(11, "1 2"), b=B), ["public.a: 1 row more"]),
        (with_tables(a=TableContent(10, "1 3"), b=B), ["public.a: content differs"]),
        (with_tables(b=B), ["public.a: missing"]),
        (with_tables(a=A, b=B, c=A), ["public.c: not in the backup"]),
        (with_sequence(SequenceState(12, True, 1, False)), []),
        (with_sequence(SequenceState(9, True, 1, False)), ["public.a_id: stands at 9, behind 10"]),
        (with_sequence(SequenceState(10, False, 1, False)), ["public.a_id: stands at 9, behind 10"]),
        (replace(BEFORE, sequences={}), ["public.a_id: sequence missing"]),
        (replace(BEFORE, large_objects=LargeObjects(1, 90, "7 8")), ["large objects: 1 fewer"]),
        (replace(BEFORE, large_objects=LargeObjects(2, 100, "7 9")), ["large objects: content or owner differs"]),
    ],
)
def test_differences_are_named(after: Inventory, differences: list[str]) -> None:
    assert compare(BEFORE, after) == differences


def test_a_descending_sequence_advances_downwards_and_a_cycling_one_has_no_order() -> None:
    down = with_sequence(SequenceState(-5, True, -1, False))
    assert compare(down, with_sequence(SequenceState(-7, True, -1, False))) == []
    assert compare(down, with_sequence(SequenceState(-3, True, -1, False))) == ["public.a_id: stands at -3, behind -5"]
    assert compare(with_sequence(SequenceState(9, True, 1, True)), with_sequence(SequenceState(1, True, 1, True))) == []


@pytest.mark.requirement("R4.5")
def test_a_sample_is_compared_by_itself() -> None:
    after = Inventory({"public.b": B}, {})
    assert compare(BEFORE, after, ["public.b"]) == []
    assert compare(BEFORE, after, ["public.a", "public.z"]) == ["public.a: missing", "public.z: not in the backup"]


def test_json_keeps_everything() -> None:
    assert Inventory.from_json(BEFORE.to_json()) == BEFORE
    without = replace(BEFORE, large_objects=None)
    assert Inventory.from_json(without.to_json()) == without
    assert BEFORE.rows == 13
