"""What `pg_amcheck` says, and what is made of it: nothing that it names is passed over (R5.2)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from include.recovery.validation import indexes as module
from include.recovery.validation.indexes import NotChecked, indexes
from include.sandbox.postgres import PostgresServer

SAID = """heap table "postgres.public.it's, a: table", block 0, offset 3, attribute 1:
    attribute with length -1 ends at offset 40 beyond total tuple length 37
btree index "postgres.public.chats_pkey":
    ERROR:  heap tuple (0,1) from table "chats" lacks matching index tuple within index "chats_pkey"
heap table "postgres.public.users":
    ERROR:  could not open file
gin index "postgres.public.words":
    ERROR:  damaged
"""
NAMED = {"public.it's, a: table", "public.chats_pkey", "public.users", "public.words"}


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize(
    ("code", "said", "error", "found"),
    [
        (0, "", "", set()),
        (2, SAID, "", NAMED),
        (2, "something else", "", "something else"),
        (1, "", "it is away", "it is away"),
        (1, SAID, "it is away", "it is away"),  # it did not come to the end
    ],
)
def test_every_table_and_index_that_it_names_is_damaged_and_no_answer_is_no_good_one(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch, *, code: int, said: str, error: str, found: Any
) -> None:
    asked: list[str] = []

    def run(argv: list[str], **_: object) -> Any:
        asked[:] = argv[1:]
        return SimpleNamespace(returncode=code, stdout=said, stderr=error)

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    login = postgres18.superuser.with_database("postgres")
    if isinstance(found, str):
        with pytest.raises(NotChecked, match=found):
            module._checked_by_amcheck(login, install=False)
    else:
        assert module._checked_by_amcheck(login, install=False) == found
    assert "--heapallindexed" in asked
    assert "--install-missing" not in asked


@pytest.mark.requirement("R5.2")
def test_a_table_that_is_damaged_is_told_although_it_is_no_index(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_checked_by_amcheck", lambda *_, **__: {"public.users"})
    login = postgres18.superuser.with_database("postgres")
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute("CREATE TEMPORARY TABLE t (a int UNIQUE, b int[], c int UNIQUE)")
        session.execute("CREATE INDEX words ON pg_temp.t USING gin (b)")
        session.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_c_key'::regclass")
        [(oid,)] = session.execute("SELECT 't'::regclass::oid::int").fetchall()
        valid, sound = indexes(session, login, [oid])
    assert [(each.subject.rpartition(".")[2], each.found) for each in valid.answers] == [
        ("t_a_key", "valid"),
        ("t_c_key", "invalid"),
        ("words", "valid"),
    ]
    found = [(each.subject.rpartition(".")[2], each.expected, each.found) for each in sound.answers]
    assert found == [("t_a_key", "sound", "sound"), ("users", "sound", "damaged")]
