"""A sudden shrink is an alarm; growth, tiny things, and tables that the policy moved are none (R4.5)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.backup.sizes import Sizes, shrunk
from include.policy import load_policy
from include.repository.contents import BASE, INVENTORY, REPOSITORY_BUNDLE, STRUCTURE, tablespace_tar
from include.repository.lsn import Lsn
from include.repository.manifest import (
    Artifact,
    BaseBackup,
    ObjectsSummary,
    Pack,
    StoredSegment,
    Tablespace,
    WalFile,
    WalWindow,
)
from include.sources.postgres.inventory import Inventory, TableContent
from tests.manifests import ATTEMPT, MIDNIGHT, make

POLICY = load_policy()
NAMES = [component.name for component in POLICY.sample_turns]
MB = 10**6


def artifact(name: str, component: str, size: int) -> Artifact:
    segment = StoredSegment(key="k", raw_bytes=size, raw_sha256="r", stored_bytes=1, stored_sha256="s")
    return Artifact(
        name=name,
        component=component,
        retention_class="personal",
        attempt=ATTEMPT,
        segments=(segment,),
        milliseconds=1,
    )


def pack(component: str, members: int, size: int) -> Pack:
    return Pack(
        id=component,
        component=component,
        retention_class="personal",
        attempt=ATTEMPT,
        members=members,
        raw_bytes=size,
        stored_bytes=1,
        stored_sha256="s",
    )


def sizes(
    tables: dict[str, tuple[str, int]] | None = None,
    *,
    row_bytes: int = 1000,
    objects: dict[str, tuple[int, int]] | None = None,
    bundle: int = 1000,
) -> Sizes:
    """A backup of `{table: (component, rows)}` and `{component: (objects, bytes)}`."""
    tables = {"public.users": ("user_data", 10_000)} if tables is None else tables
    objects = {"user_uploads": (1000, 50 * MB)} if objects is None else objects
    rows: dict[str, int] = {}
    for component, count in tables.values():
        rows[component] = rows.get(component, 0) + count
    manifest = make(
        artifacts=(
            artifact(INVENTORY, STRUCTURE, 500),
            artifact(REPOSITORY_BUNDLE, STRUCTURE, bundle),
            *(artifact(f"database/{name}.pgdump", name, count * row_bytes) for name, count in rows.items()),
        ),
        packs=tuple(pack(name, *amount) for name, amount in objects.items()),
    )
    manifest = manifest.model_copy(
        update={
            "database": manifest.database.model_copy(update={"rows": sum(rows.values()), "tables": len(tables)}),
            "objects": manifest.objects.model_copy(
                update={
                    "objects": sum(count for count, _ in objects.values()),
                    "raw_bytes": sum(size for _, size in objects.values()),
                }
            ),
        }
    )
    inventory = Inventory({table: TableContent(count, "0 0") for table, (_, count) in tables.items()}, {})
    return Sizes(manifest, inventory, {table: component for table, (component, _) in tables.items()})


def told(now: Sizes, *before: Sizes) -> list[str]:
    return shrunk(now, before, POLICY.verification, NAMES)


def test_the_first_backup_ever_has_nothing_to_be_compared_with() -> None:
    assert told(sizes()) == []


def test_what_stays_or_grows_is_no_alarm() -> None:
    assert told(sizes(), sizes()) == []
    assert told(sizes({"public.users": ("user_data", 10**6)}, objects={"user_uploads": (10**5, 10**9)}), sizes()) == []


@pytest.mark.requirement("R4.5")
def test_rows_objects_and_bytes_that_are_suddenly_fewer_are_named_with_what_is_usual() -> None:
    usual = sizes(bundle=4 * MB)
    assert told(sizes({"public.users": ("user_data", 4_999)}, bundle=4 * MB), usual) == [
        "all: 4,999 rows where 10,000 are usual",
        "user_data: 4,999,000 bytes where 10,000,000 are usual",
        "user_data: 4,999 rows where 10,000 are usual",
    ]
    assert told(sizes(objects={}, bundle=4 * MB), usual) == [
        "all: 14,000,500 bytes where 64,000,500 are usual",
        "all: 0 objects where 1,000 are usual",
        "user_uploads: 0 bytes where 50,000,000 are usual",
        "user_uploads: 0 objects where 1,000 are usual",
    ]
    assert told(sizes(bundle=1 * MB), usual) == ["repository: 1,000,000 bytes where 4,000,000 are usual"]


def test_half_is_still_enough() -> None:
    assert told(sizes({"public.users": ("user_data", 5_000)}), sizes()) == []


def test_what_is_tiny_may_shrink_as_it_likes() -> None:
    before = sizes({"public.flags": ("system_config", 99), "public.users": ("user_data", 10_000)}, row_bytes=100)
    now = sizes({"public.flags": ("system_config", 1), "public.users": ("user_data", 10_000)}, row_bytes=100)
    assert told(now, before) == []
    assert told(
        sizes({"public.flags": ("system_config", 1), "public.users": ("user_data", 10_000)}, row_bytes=100),
        sizes({"public.flags": ("system_config", 100), "public.users": ("user_data", 10_000)}, row_bytes=100),
    ) == ["system_config: 1 rows where 100 are usual"]


def test_a_table_that_the_policy_moved_to_another_component_is_no_shrink() -> None:
    before = sizes({"public.users": ("user_data", 10_000), "public.bills": ("user_data", 9_000)})
    now = sizes({"public.users": ("user_data", 2_000), "public.bills": ("billing", 9_000)})
    moved = sizes({"public.users": ("user_data", 10_000), "public.bills": ("billing", 9_000)})

    assert told(moved, before) == []
    assert told(now, before) == ["user_data: 2,000 rows where 10,000 are usual"]


def test_a_component_that_the_policy_lost_is_not_missed_and_one_whose_tables_are_gone_is() -> None:
    before = sizes({"public.users": ("user_data", 90_000), "public.bills": ("billing", 9_000)})
    gone = sizes({"public.users": ("user_data", 90_000)})

    assert told(gone, before) == [
        "billing: 0 bytes where 9,000,000 are usual",
        "billing: 0 rows where 9,000 are usual",
    ]
    assert shrunk(gone, [before], POLICY.verification, [name for name in NAMES if name != "billing"]) == []


def test_one_odd_day_is_not_what_is_usual() -> None:
    odd = sizes({"public.users": ("user_data", 200_000)})
    assert told(sizes(), odd, *[sizes()] * 6) == []
    slowly = [sizes({"public.users": ("user_data", rows)}) for rows in (5_500, 10_000, 10_000)]
    assert told(sizes({"public.users": ("user_data", 3_000)}), *slowly) != []


amount = st.integers(0, 10**6)


@given(now=amount, before=st.lists(amount, min_size=1, max_size=7))
def test_no_growth_is_ever_a_shrink_and_every_fall_below_the_share_is(now: int, before: list[int]) -> None:
    found = told(of_rows(now), *map(of_rows, before))
    ordered = sorted(before)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert bool(found) == (middle >= 100 and now < 0.5 * middle)


def of_rows(rows: int) -> Sizes:
    return sizes({"public.users": ("user_data", rows)}, row_bytes=0, objects={})


def test_what_cannot_be_true_of_the_source_is_told() -> None:
    assert list(sizes().misfits()) == []
    assert list(sizes(row_bytes=0).misfits()) == ["user_data: 10000 rows in 0 bytes"]


def test_the_policy_decides() -> None:
    def verification(**changes: Any) -> Any:
        return POLICY.verification.model_copy(update=changes)

    now, before = sizes({"public.users": ("user_data", 5_001)}), [sizes()]
    assert shrunk(now, before, verification(), NAMES) == []
    assert shrunk(now, before, verification(shrunk_to=0.6), NAMES) != []
    assert (
        shrunk(now, before, verification(shrunk_to=0.6, shrunk_from_items=10**5, shrunk_from_bytes=10**9), NAMES) == []
    )


def of_cluster(base_bytes: int, database_bytes: int, *, wal_bytes: int = 0) -> Sizes:
    """A snapshot: no dump, a base of two tars."""
    start, segment = Lsn(16 * MB), max(wal_bytes, MB)
    file = WalFile(name="0" * 24, attempt=ATTEMPT, raw_bytes=wal_bytes, raw_sha256="", stored_bytes=0, stored_sha256="")
    manifest = make(
        type="snapshot",
        artifacts=(
            artifact(BASE, STRUCTURE, base_bytes - MB),
            artifact(tablespace_tar(7), STRUCTURE, MB),
            artifact(INVENTORY, STRUCTURE, 100),
        ),
        packs=(),
        objects=ObjectsSummary(bucket="files", objects=0, raw_bytes=0),
        base=BaseBackup(
            start_lsn=start,
            stop_lsn=start,
            started=MIDNIGHT,
            stopped=MIDNIGHT,
            tablespaces=(Tablespace(oid=7, location="/apart"),),
            database_bytes=database_bytes,
        ),
        wal=WalWindow(
            start_lsn=start,
            end_lsn=Lsn(start + segment),
            segment_bytes=segment,
            timeline=1,
            since=MIDNIGHT,
            files=(file,),
        ),
    )
    return Sizes(manifest, Inventory({"public.users": TableContent(1, "0 0")}, {}), {"public.users": "user_data"})


def test_a_base_is_weighed_against_the_databases_and_the_bases_before_it() -> None:
    usual = of_cluster(100 * MB, 90 * MB)

    assert list(usual.misfits()) == []  # it has no dumps to hold its rows against
    assert usual.base_bytes == 100 * MB
    assert shrunk(usual, [usual] * 3, POLICY.verification, NAMES) == []
    assert shrunk(of_cluster(44 * MB, 90 * MB), [], POLICY.verification, NAMES) == [
        "cluster: 44,000,000 bytes of databases that take 90,000,000 (unlogged tables are in no base)"
    ]
    assert any(
        told.startswith("cluster: 49,000,000 bytes where 100,000,000")
        for told in shrunk(of_cluster(49 * MB, 40 * MB), [usual], POLICY.verification, NAMES)
    )


def test_how_much_log_there_is_says_nothing() -> None:
    busy, idle = of_cluster(100 * MB, 90 * MB, wal_bytes=900 * MB), of_cluster(100 * MB, 90 * MB)

    assert shrunk(idle, [busy], POLICY.verification, NAMES) == []
