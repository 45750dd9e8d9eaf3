"""Of a database in which only some tables came back, only those are looked at (R5.2)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from include.recovery.validation.consistency import _alone, _looked_at
from include.recovery.validation.recovered import Expected
from include.sources.postgres.relations import Relation, Relations

NOW = datetime(2026, 11, 29, tzinfo=UTC)
PARENT = Relation(1, "public", "messages", "parent")
PART = Relation(2, "public", "messages_2026", "table", ancestors=(1,))
OTHER_PART = Relation(3, "public", "messages_2025", "table", ancestors=(1,))
FILLED = Relation(4, "public", "messages_2026_id_seq", "sequence", owner=2)
OF_THE_PARENT = Relation(5, "public", "messages_id_seq", "sequence", owner=1)
OF_ANOTHER = Relation(6, "public", "messages_2025_id_seq", "sequence", owner=3)
LOOSE = Relation(7, "public", "loose", "sequence")
ALL = Relations((LOOSE, PARENT, OTHER_PART, OF_ANOTHER, PART, FILLED, OF_THE_PARENT))


@pytest.mark.requirement("R5.2")
def test_a_table_that_came_alone_is_looked_at_with_what_it_is_a_part_of_and_the_sequences_of_both() -> None:
    assert _looked_at(ALL, Expected(NOW)) == ALL
    alone = _looked_at(ALL, Expected(NOW, tables=("public.messages_2026",)))
    assert alone == Relations((PARENT, PART, FILLED, OF_THE_PARENT))


@pytest.mark.requirement("R5.2")
def test_of_a_table_that_came_alone_its_own_constraints_are_asked_for() -> None:
    tables = ("public.chats",)
    assert _alone("public.chats: chats_pkey PRIMARY KEY (id)", tables)
    assert not _alone("public.chats: chats_user FOREIGN KEY (user_id) REFERENCES public.users(id)", tables)
    assert not _alone("public.chats_old: chats_old_pkey PRIMARY KEY (id)", tables)
