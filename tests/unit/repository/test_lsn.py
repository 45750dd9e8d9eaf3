"""Places in the log, segments' names, and the way through timelines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from include.repository.layout import wal_key, wal_place
from include.repository.lsn import (
    Lsn,
    LsnField,
    history_name,
    is_history,
    is_segment,
    segment_end,
    segment_lsn,
    segment_name,
    segment_start,
    timeline_of,
)
from include.repository.timelines import TimelineHistory

MIB16 = 16 << 20
lsns = st.integers(0, (1 << 64) - (1 << 30)).map(Lsn)
sizes = st.sampled_from([1 << 20, MIB16, 1 << 30])


@given(lsns)
def test_a_place_is_read_as_it_is_written(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn


def test_places_are_compared_as_numbers() -> None:
    assert Lsn.parse("9/0") < Lsn.parse("10/0")
    assert str(Lsn.parse("16/b374d848")) == "16/B374D848"


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "16/B374D8481", "x/1", " 0/1", "0/1\n"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        Lsn.parse(text)


@given(lsns, sizes, st.integers(1, 1 << 31))
def test_a_segment_is_found_by_its_name(lsn: Lsn, size: int, timeline: int) -> None:
    name = segment_name(timeline, lsn, size)
    assert is_segment(name)
    assert timeline_of(name) == timeline
    assert segment_lsn(name, size) == segment_start(lsn, size) <= lsn < segment_start(lsn, size) + size
    assert segment_end(lsn, size) - segment_start(lsn, size) in ({0} if lsn % size == 0 else {size})


def test_names_are_postgresql_s_own() -> None:
    # SELECT pg_walfile_name('1/2000028') on a server whose timeline is 3
    assert segment_name(3, Lsn.parse("1/2000028"), MIB16) == "000000030000000100000002"
    assert not is_segment("000000030000000100000002.partial")
    assert is_history(history_name(3))


class _Document(BaseModel):
    at: LsnField


def test_a_document_holds_a_place_as_text() -> None:
    document = _Document(at=Lsn.parse("0/3000028"))
    assert document.model_dump(mode="json") == {"at": "0/3000028"}
    assert _Document.model_validate({"at": "0/3000028"}) == document
    for wrong in (1, None, "3000028"):
        with pytest.raises(ValidationError):
            _Document.model_validate({"at": wrong})


HISTORY = TimelineHistory.parse(3, "1\t0/3000158\tno recovery target specified\n\n2\t0/6000000\tat restore point\n")


def test_a_history_leads_from_timeline_to_timeline() -> None:
    assert HISTORY.switches == ((1, Lsn.parse("0/3000158")), (2, Lsn.parse("0/6000000")))
    assert [HISTORY.timeline_at(Lsn.parse(at)) for at in ("0/3000157", "0/3000158", "0/5FFFFFF", "0/6000000")] == [
        *(1, 2, 2, 3)
    ]
    assert HISTORY.contains(2)
    assert not HISTORY.contains(4)
    assert HISTORY.left_at(1) == Lsn.parse("0/3000158")
    assert HISTORY.left_at(3) is None


def test_recovery_asks_for_the_newer_timeline_s_segment_where_one_was_left() -> None:
    names = HISTORY.segment_names(Lsn.parse("0/2000028"), Lsn.parse("0/8000000"), MIB16)
    assert [(timeline_of(name), segment_lsn(name, MIB16) >> 24) for name in names] == [
        *((1, 2), (2, 3), (2, 4), (2, 5), (3, 6), (3, 7))
    ]


@pytest.mark.parametrize("text", ["3\t0/0\t\n", "2\t0/1\n1\t0/2\n", "1\tnowhere\n"])
def test_a_history_out_of_order_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"out of order|no place"):
        TimelineHistory.parse(3, text)


def test_a_shipped_segment_s_key_says_what_it_is() -> None:
    name = "000000030000000100000002"
    key = wal_key("7381", name, "0123456789abcdef")
    assert key == f"wal/7381/00000003/{name}.0123456789abcdef.zst.enc"
    place = wal_place(key)
    assert place is not None
    assert (place.system_identifier, place.name, place.attempt) == ("7381", name, "0123456789abcdef")
    for stranger in (key.replace("00000003/", "00000004/"), key + "x", key.replace("wal/", "packs/")):
        assert wal_place(stranger) is None
