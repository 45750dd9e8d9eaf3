"""Every relation in exactly one dump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.sources.postgres.relations import CATCH_ALL, ComponentsOverlap, DumpPlan, Relation, Relations, plan_dump


def table(oid: int, name: str, *ancestors: int) -> Relation:
    return Relation(oid, "public", name, "table", ancestors)


def sequence(oid: int, name: str, owner: int | None = None) -> Relation:
    return Relation(oid, "public", name, "sequence", owner=owner)


USERS, LOGS = table(1, "users"), table(2, "Logs")
MESSAGES = Relation(3, "public", "messages", "parent")
PART_A, PART_B = table(4, "messages_a", 3), table(5, "messages_b", 3)
USERS_ID, MESSAGES_ID, LOOSE = sequence(6, "users_id", 1), sequence(7, "messages_id", 3), sequence(8, "loose")
ALL = Relations((USERS, LOGS, MESSAGES, PART_A, PART_B, USERS_ID, MESSAGES_ID, LOOSE))


def names(plan: DumpPlan) -> dict[str, set[str]]:
    return {part.name: {relation.name for relation in part.relations} for part in plan}


def test_a_pattern_that_names_a_parent_takes_its_leaves_and_its_sequence() -> None:
    plan = plan_dump(ALL, {"chat": ["public.messages"], "users": ["public.us*"]})
    assert names(plan) == {
        "chat": {"messages_a", "messages_b", "messages_id"},
        "users": {"users", "users_id"},
        CATCH_ALL: {"Logs", "loose"},
    }
    assert plan.component_of(PART_A) == "chat"
    assert plan.warnings == (
        "Table public.Logs is in no component: it is backed up in unclassified_database and kept as personal data.",
    )


def test_a_sequence_shared_by_two_components_goes_to_the_catch_all() -> None:
    plan = plan_dump(ALL, {"a": ["public.messages_a"], "b": ["public.messages_b"]})
    assert names(plan)[CATCH_ALL] == {"users", "Logs", "users_id", "messages_id", "loose"}


def test_a_loose_sequence_can_be_named_and_an_owned_one_cannot() -> None:
    plan = plan_dump(ALL, {"a": ["public.loose", "public.users_id"]})
    assert names(plan)["a"] == {"loose"}
    assert "Component a: nothing in the database matches public.users_id." in plan.warnings


def test_two_claims_on_one_table_are_refused_with_both_names() -> None:
    with pytest.raises(ComponentsOverlap, match=r"public\.messages_a is claimed by two components, chat and first\."):
        plan_dump(ALL, {"chat": ["public.messages"], "first": ["public.*_a"]})


def test_one_dot_with_two_readings_is_two_names() -> None:
    first, second = Relation(1, "a", "b.c", "table"), Relation(2, "a.b", "c", "table")
    assert [str(first), str(second), str(USERS), str(LOGS)] == [
        *('a."b.c"', '"a.b".c'),
        *("public.users", "public.Logs"),
    ]
    assert names(plan_dump(Relations((first, second)), {"both": ["a?b?c"]}))["both"] == {"b.c", "c"}


def test_patterns_mind_case() -> None:
    assert names(plan_dump(ALL, {"a": ["public.logs"]}))["a"] == set()


def test_inherited_tables_hold_rows_of_their_own() -> None:
    parent, child = table(1, "cities"), table(2, "capitals", 1)
    plan = plan_dump(Relations((parent, child, sequence(3, "id", 1))), {"a": ["public.cities"], "b": []})
    assert names(plan)["a"] == {"cities", "capitals", "id"}
    apart = plan_dump(Relations((parent, child, sequence(3, "id", 1))), {"b": ["public.capitals"]})
    assert names(apart) == {"b": {"capitals"}, CATCH_ALL: {"cities", "id"}}


def test_parents_are_locked_before_their_children() -> None:
    middle, leaf = Relation(9, "public", "aa_middle", "parent", (3,)), table(10, "a_leaf", 3, 9)
    relations = Relations((leaf, middle, *ALL.all))
    order = [relation.name for relation in relations.lockable]
    assert order.index("messages") < order.index("aa_middle") < order.index("a_leaf")
    assert {"users_id", "loose"}.isdisjoint(order)


def test_foreign_tables_are_said_to_stay_behind() -> None:
    foreign = Relation(1, "public", "elsewhere", "foreign table")
    assert plan_dump(Relations((foreign,)), {}).warnings == (
        "Foreign table public.elsewhere: its definition is backed up, its rows are another server's.",
    )


def test_difference_names_what_moved() -> None:
    assert ALL.difference(Relations(ALL.all[1:])) == ["public.users"]
    assert ALL.difference(ALL) == []


PATTERNS = st.lists(st.sampled_from(["public.users", "public.messages", "public.*_a", "public.L*", "*.loose", "x.y"]))


@given(st.dictionaries(st.sampled_from("abc"), PATTERNS))
def test_any_plan_takes_everything_once(components: dict[str, list[str]]) -> None:
    try:
        plan = plan_dump(ALL, components)
    except ComponentsOverlap:
        return
    taken = [relation for part in plan for relation in part.relations]
    assert sorted(taken, key=lambda relation: relation.oid) == sorted(
        (*ALL.tables, *ALL.sequences), key=lambda relation: relation.oid
    )
