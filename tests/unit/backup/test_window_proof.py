"""An increment's proof: every border between two segments is looked at, and what is counted is there."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from include.backup.window_proof import _rounds, misfits
from tests.manifests import SEGMENT, wal_file, window


@given(st.integers(1, 400))
def test_every_segment_and_every_border_is_in_a_round(count: int) -> None:
    files = [wal_file(f"{number:024X}") for number in range(count)]
    rounds = list(_rounds(files))
    assert {file.name for each in rounds for file in each} == {file.name for file in files}
    assert {pair for each in rounds for pair in pairwise(each)} == set(pairwise(files))
    assert max(map(len, rounds)) <= 64


def test_an_increment_that_counts_what_it_has_not_is_told() -> None:
    made = window("incremental", 1, (1, 3))
    assert list(misfits(made)) == []
    assert made.wal is not None
    less = made.wal.model_copy(update={"files": made.wal.files[1:]})
    point = made.consistency_point.model_copy(update={"lsn": "0/10"})
    objects = made.objects.model_copy(update={"raw_bytes": 8})
    told = list(misfits(made.model_copy(update={"wal": less, "consistency_point": point, "objects": objects})))
    assert [each.partition(":")[0] for each in told] == ["log", "log", "objects"]
    assert f"{SEGMENT} bytes of segments" in told[1]
