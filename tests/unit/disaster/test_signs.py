"""What of a backup's numbers looks like ransomware, and what is an ordinary busy day."""

from __future__ import annotations

from typing import Any

import pytest

from include.disaster.signs import (
    CLUSTER,
    changed_many,
    may_have_changed_many,
    rewritten_log,
    stopped_compressing,
    weights,
)
from include.policy import load_policy
from include.repository.contents import STRUCTURE
from include.repository.manifest import Artifact, Manifest, StoredSegment
from tests.manifests import make, window

POLICY = load_policy().verification
MB = 1_000_000


def full(
    day: int, *, dump: tuple[int, int], objects: tuple[int, int], rows: int = 1000, members: int = 1000
) -> Manifest:
    """A full backup with so many MB of dump and of objects, raw and stored."""
    made = make(day)
    artifact = made.artifacts[0].model_copy(update={"segments": (segment(*dump),)})
    pack = made.packs[0].model_copy(
        update={"raw_bytes": objects[0] * MB, "stored_bytes": objects[1] * MB, "members": members}
    )
    database = made.database.model_copy(update={"rows": rows})
    return made.model_copy(update={"artifacts": (artifact,), "packs": (pack,), "database": database})


def segment(raw: int, stored: int) -> StoredSegment:
    return StoredSegment(key="k", raw_bytes=raw * MB, raw_sha256="r", stored_bytes=stored * MB, stored_sha256="s")


def snapshot(raw: int, stored: int) -> Manifest:
    """A base of so many MB."""
    base = Artifact(
        name="database/base.tar",
        component="structure",
        retention_class="system_config",
        attempt="0123456789abcdef",
        segments=(segment(raw, stored),),
        milliseconds=1,
    )
    return window("snapshot", 0, (1, 3), artifacts=(base,))


def increment(raw: int, stored: int, **objects: Any) -> Manifest:
    """A window of so many MB of log."""
    made = window("incremental", 60, (3, 4))
    assert made.wal is not None
    [file] = made.wal.files
    file = file.model_copy(update={"raw_bytes": raw * MB, "stored_bytes": stored * MB})
    return made.model_copy(
        update={
            "wal": made.wal.model_copy(update={"files": (file,)}),
            "objects": made.objects.model_copy(update=objects),
        }
    )


BEFORE = [full(day, dump=(100, 30), objects=(400, 390)) for day in range(3)]


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"dump": (100, 99)}, ["user_data"]),  # each row replaced by as many random bytes
        ({"dump": (200, 102)}, ["user_data"]),  # the same, in hexadecimal digits
        ({"dump": (100, 65)}, ["user_data"]),  # one row in two
        ({"dump": (110, 34)}, []),  # an ordinary day
        ({"dump": (200, 60), "rows": 2000}, []),  # an import, of what is usual
        ({"dump": (200, 130), "rows": 2000}, []),  # an import of what does not compress
        ({"dump": (150, 40)}, []),  # a column more in each row
        ({"dump": (200, 60)}, []),  # rows twice as long, of what is usual
        ({"objects": (400, 400)}, []),  # photographs never did compress: nothing can be told
        ({"objects": (900, 890), "members": 2200}, []),  # and many more of them
    ],
)
def test_content_that_stopped_compressing(changes: dict[str, Any], found: list[str]) -> None:
    now = full(3, **{"dump": (100, 30), "objects": (400, 390), **changes})

    assert [words.split(" compresses")[0] for words in stopped_compressing(now, BEFORE, POLICY)] == found


def test_little_and_new_content_is_not_weighed() -> None:
    small = [full(day, dump=(0, 0), objects=(400, 390)) for day in range(3)]

    assert list(stopped_compressing(full(3, dump=(100, 99), objects=(400, 390)), [], POLICY)) == []
    assert list(stopped_compressing(full(3, dump=(0, 0), objects=(400, 390)), small, POLICY)) == []

    # The same as a hundred times as much would be told for, and below what is weighed at all.
    above = POLICY.model_copy(update={"shrunk_from_bytes": 100 * MB + 1})
    assert list(stopped_compressing(full(3, dump=(100, 99), objects=(400, 390)), BEFORE, POLICY)) != []
    assert list(stopped_compressing(full(3, dump=(100, 99), objects=(400, 390)), BEFORE, above)) == []
    assert list(rewritten_log(increment(400, 240), snapshot(500, 100), above)) != []  # 240 are stored
    above = POLICY.model_copy(update={"shrunk_from_bytes": 240 * MB + 1})
    assert list(rewritten_log(increment(400, 240), snapshot(500, 100), above)) == []


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ((400, 240), True),  # every row rewritten at random
        ((400, 60), False),  # every row rewritten, as a migration does
        ((30, 20), False),  # a few photographs in rows
        ((16, 0), False),  # an idle hour
    ],
)
def test_log_of_a_mass_of_random_rows(log: tuple[int, int], found: bool) -> None:
    assert bool(list(rewritten_log(increment(*log), snapshot(500, 100), POLICY))) == found


def test_what_was_never_smaller_than_itself_tells_nothing_and_a_base_has_its_tablespaces() -> None:
    photographs = full(0, dump=(100, 30), objects=(400, 400))
    assert list(stopped_compressing(photographs, [photographs], POLICY)) == []
    base = snapshot(500, 100)
    [tar] = base.artifacts
    more = (tar, tar.model_copy(update={"name": "database/tablespace-16384.tar"}))
    assert weights(base.model_copy(update={"artifacts": more}))[CLUSTER].raw == 1000 * MB
    listed = photographs.artifacts[0].model_copy(update={"name": "database/inventory.json", "component": STRUCTURE})
    told = weights(photographs.model_copy(update={"artifacts": (*photographs.artifacts, listed)}))
    assert set(told) == {"user_data", "objects of user_uploads"}


def test_without_a_base_no_log_is_weighed() -> None:
    assert list(rewritten_log(increment(400, 400), None, POLICY)) == []


def test_many_objects_changed_at_once() -> None:
    listing = make(0).model_copy(update={"objects": make(0).objects.model_copy(update={"objects": 1000})})

    assert not may_have_changed_many(increment(1, 1, objects=200, deleted=40), listing, [], POLICY)
    assert may_have_changed_many(increment(1, 1, objects=200, deleted=60), listing, [], POLICY)
    few = listing.model_copy(update={"objects": listing.objects.model_copy(update={"objects": 99})})
    assert not may_have_changed_many(increment(1, 1, objects=90, deleted=0), few, [], POLICY)
    one_more = increment(1, 1, objects=1)
    assert may_have_changed_many(increment(1, 1, objects=90, deleted=0), few, [one_more], POLICY)
    assert list(changed_many(240, 1000, [3, 5])) == []
    assert list(changed_many(250, 1000, [])) != []  # the first increment there is
    assert list(changed_many(300, 1000, [3, 5, 300])) != []
    assert list(changed_many(300, 1000, [290, 310])) == []  # every hour is like that
