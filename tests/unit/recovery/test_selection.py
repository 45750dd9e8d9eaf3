"""Tables by their names, and PostgreSQL's own lists and statements, whatever stands in a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.errors import BackupError
from include.recovery.pg_restore import only_unknown_setting
from include.recovery.selection import (
    FOREIGN_KEY,
    REFRESH,
    NothingMatches,
    Part,
    choose,
    entries_at_once,
    entries_of,
    loose_sequences,
    named_when_left_out,
    normal,
    possible_foreign_keys,
    qualified,
)
from include.sources.postgres.relations import Relation, Relations

LIST = """;
; Archive created at 2026-11-22 21:39:11 UTC
;     dbname: FK CONSTRAINT
;
3386; 2606 16587 CONSTRAINT public attachments attachments_pkey postgres
3358; 1259 16466 INDEX public FK CONSTRAINT postgres
3410; 2606 16600 FK CONSTRAINT public attachments POLICY postgres
3411; 3256 16700 POLICY public user_settings own_settings postgres
3412; 0 16418 ROW SECURITY public user_settings postgres
3413; 0 16500 MATERIALIZED VIEW DATA public monthly_usage postgres
3414; 0 0 COMMENT public CONSTRAINT x ON y postgres
3415; 6104 16720 PUBLICATION - everything postgres
3416; 6106 16721 PUBLICATION TABLE public everything users postgres
3417; 3466 16722 EVENT TRIGGER - watch postgres
3418; 2620 16723 TRIGGER public users touch postgres
""".splitlines()


def numbers(lines: list[str]) -> list[int]:
    return [int(line.partition(";")[0]) for line in lines]


def test_a_list_is_told_apart_by_kind_and_not_by_names() -> None:
    assert numbers(entries_at_once(LIST)) == [3386, 3358, 3418]
    assert numbers(entries_of(LIST, "FK CONSTRAINT")) == [3410]
    assert numbers(entries_of(LIST, "POLICY", "PUBLICATION", "EVENT TRIGGER")) == [3411, 3415, 3416, 3417]
    assert numbers(entries_of(LIST, "CONSTRAINT")) == [3386]


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
plain = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def table(oid: int, schema: str, name: str, *ancestors: int, parent: bool = False) -> Relation:
    return Relation(oid, schema, name, "parent" if parent else "table", ancestors)


def part(*tables: Relation, structure: tuple[Relation, ...] = (), surplus: tuple[Relation, ...] = ()) -> Part:
    return Part(tables, (), structure, surplus, frozenset())


@settings(deadline=None)
@given(schema=names, name=names, key=names, column=names, other=names)
def test_a_foreign_key_is_read_whatever_its_names_are(
    schema: str, name: str, key: str, column: str, other: str
) -> None:
    here, there = table(1, schema, name), table(2, schema, name + other)
    statement = (
        f"ALTER TABLE ONLY {qualified(here)}\n    ADD CONSTRAINT {quoted(key)} FOREIGN KEY ({quoted(column)}, id) "
        f"REFERENCES {qualified(there)}({quoted(column)}, id) ON DELETE SET NULL NOT VALID;"
    )
    found = FOREIGN_KEY.match(statement)

    assert found is not None
    assert (found["table"], found["to"], found["name"]) == (qualified(here), qualified(there), quoted(key))
    assert possible_foreign_keys([statement], part(here, there)) == ([True], [])
    assert possible_foreign_keys([statement], part(there, surplus=(here,))) == ([False], [])
    [possible], [told] = possible_foreign_keys([statement], part(here, surplus=(there,)))
    assert not possible
    assert qualified(there) in told


@given(schema=plain, name=plain)
def test_a_name_is_the_same_with_and_without_its_quotes(schema: str, name: str) -> None:
    assert normal(f"{schema}.{name}") == normal(f"{quoted(schema)}.{name}") == f"{quoted(schema)}.{quoted(name)}"


@given(schema=names, name=names)
def test_a_quoted_name_stays_as_it_is(schema: str, name: str) -> None:
    found = REFRESH.match(f"REFRESH MATERIALIZED VIEW {quoted(schema)}.{quoted(name)};")
    assert found is not None
    assert normal(found["name"]) == f"{quoted(schema)}.{quoted(name)}"


def test_a_foreign_key_that_is_written_otherwise_is_an_error() -> None:
    with pytest.raises(BackupError, match="not written as pg_dump writes it"):
        possible_foreign_keys(["ALTER TABLE x ADD FOREIGN KEY (y) REFERENCES z;"], part())


@pytest.mark.parametrize(
    ("to_leaves", "possible"), [((3, 4), True), ((3,), False), ((), False)], ids=["whole", "in part", "empty"]
)
def test_a_foreign_key_to_a_parent_needs_all_its_leaves(*, to_leaves: tuple[int, ...], possible: bool) -> None:
    here, parent = table(1, "public", "here"), table(2, "public", "parent", parent=True)
    leaves = [table(oid, "public", f"leaf_{oid}", 2) for oid in (3, 4)]
    some = part(
        here,
        *(leaf for leaf in leaves if leaf.oid in to_leaves),
        structure=(parent,),
        surplus=tuple(leaf for leaf in leaves if leaf.oid not in to_leaves),
    )
    statement = (
        "ALTER TABLE public.here ADD CONSTRAINT k FOREIGN KEY (a, PERIOD b) REFERENCES public.parent(a, PERIOD b);"
    )
    assert possible_foreign_keys([statement], some)[0] == [possible]


def test_policies_are_named_for_the_tables_of_the_part_only() -> None:
    told = named_when_left_out(
        [
            "CREATE POLICY own ON public.here USING ((x = 'CREATE PUBLICATION y'));",
            "CREATE POLICY own ON public.there USING (true);",
            'CREATE PUBLICATION "all; of it" FOR ALL TABLES;',
            "ALTER PUBLICATION some ADD TABLE ONLY public.here;",
            "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION public.f();",
            "ALTER EVENT TRIGGER watch DISABLE;",
            "CREATE USER MAPPING FOR \"a b\" SERVER far OPTIONS (password 'hidden');",
        ],
        [table(1, "public", "here")],
    )
    assert list(told) == [
        "policy own on public.here",
        'publication "all; of it"',
        "event trigger watch",
        'user mapping of "a b" to server far',
    ]


def test_a_loose_sequence_is_found_by_the_longest_name_that_fits() -> None:
    def sequence(oid: int, name: str, owner: int | None = None) -> Relation:
        return Relation(oid, "public", name, "sequence", owner=owner)

    relations = Relations((sequence(1, "a"), sequence(2, "a b"), sequence(3, "c\nd"), sequence(4, "owned", 9)))
    listed = [f"1; 0 0 SEQUENCE SET public {name} somebody" for name in ("a b", "c d", "owned")]

    assert loose_sequences(listed, relations) == {"public.a b", "public.c\nd"}


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("public.a", {1}),
        ("public.a*", {1, 2, 3}),
        ("public.parent", {2, 3}),
        ("public.a[1]", {2, 3}),
        ("public.A?", None),
        ("a", None),
    ],
)
def test_a_pattern_means_a_name_a_glob_or_an_ancestor(pattern: str, chosen: set[int] | None) -> None:
    there = {1: ("public.a",), 2: ("public.a1", "public.parent"), 3: ("public.a[1]", "public.parent")}
    if chosen is None:
        with pytest.raises(NothingMatches, match="no table"):
            choose(there, [pattern], what="table")
    else:
        assert choose(there, [pattern], what="table") == chosen


@pytest.mark.parametrize(
    ("said", "only"),
    [
        ('pg_restore: error: could not execute query: ERROR:  unrecognized parameter "transaction_timeout"', True),
        ('pg_restore: error: x "transaction_timeout"\npg_restore: warning: errors ignored on restore: 1', True),
        ('pg_restore: error: x "transaction_timeout"\npg_restore: error: no space left', False),
        ("pg_restore: warning: errors ignored on restore: 1", False),
        ("it said nothing", False),
        ("", False),
    ],
)
def test_one_error_of_newer_tools_is_none(*, said: str, only: bool) -> None:
    assert only_unknown_setting(said) is only
