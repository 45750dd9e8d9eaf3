"""What is asked of the data that came back: of some tables alone only those, and of sequences their way (R5.2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from include.recovery.validation import consistency
from include.recovery.validation.consistency import _alone, _looked_at
from include.recovery.validation.expectations import Question
from include.recovery.validation.recovered import Expected
from include.sources.postgres.inventory import Inventory, SequenceState
from include.sources.postgres.relations import Relation, Relations

NOW = datetime(2026, 11, 29, tzinfo=UTC)
PARENT = Relation(1, "public", "messages", "parent")
PART = Relation(2, "public", "messages_2026", "table", ancestors=(1,))
OTHER_PART = Relation(3, "public", "messages_2025", "table", ancestors=(1,))
FILLED = Relation(4, "public", "messages_2026_id_seq", "sequence", owner=2)
OF_THE_PARENT = Relation(5, "public", "messages_id_seq", "sequence", owner=1)
OF_ANOTHER = Relation(6, "public", "messages_2025_id_seq", "sequence", owner=3)
LOOSE = Relation(7, "public", "loose", "sequence")
NAMES = ("down", "gone", "round", "round down", "up")
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


@pytest.mark.requirement("R5.2")
def test_a_sequence_is_there_and_not_behind_whichever_way_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {name: SequenceState(10, True, -1 if "down" in name else 1, "round" in name) for name in NAMES}
    behind = {
        name: replace(state, last_value=11 if "down" in name else 9)
        for name, state in recorded.items()
        if name != "gone"
    }
    ahead = {name: replace(state, last_value=9 if "down" in name else 11) for name, state in recorded.items()}

    def asked(found: dict[str, SequenceState], *, some: bool) -> list[Question]:
        monkeypatch.setattr(consistency, "sequence_states", lambda *_: found)
        inventory = Inventory({}, recorded, None)
        return list(consistency._sequences(cast("Any", None), Relations(()), inventory, some=some))

    there, up, down = asked(behind, some=False)
    assert [each.subject for each in there.answers if each.found == "missing"] == ["gone"]
    assert (up.comparison, [each.subject for each in up.answers]) == ("at least", ["up"])
    assert (down.comparison, [each.subject for each in down.answers]) == ("at most", ["down"])
    [each] = up.answers
    assert (each.expected, each.found) == (10, 9)
    there, *_ = asked(behind, some=True)
    assert "gone" not in {each.subject for each in there.answers}  # it is another table's
    _, up, _ = asked(ahead, some=False)
    assert [(each.expected, each.found) for each in up.answers] == [(10, 11), (10, 11)]
