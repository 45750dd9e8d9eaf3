"""What a backup is called and where its objects lie: one spelling, both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.repository.layout import (
    ROLLING_TYPES,
    BackupId,
    NotABackupId,
    Place,
    envelope_key,
    envelope_prefix,
    new_attempt,
    new_pack_id,
    pack_key,
    place_of,
)

moments = st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
scheduled = st.builds(
    BackupId, st.sampled_from(ROLLING_TYPES), moments.map(lambda moment: moment.replace(microsecond=0))
)
manual = st.builds(BackupId, st.sampled_from(ROLLING_TYPES), moments, st.just(True))
archives = st.builds(BackupId.archive, st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True), moments)
MIDNIGHT = BackupId("full", datetime(2026, 11, 22, tzinfo=UTC))


@settings(deadline=None)
@given(scheduled | manual | archives)
def test_an_id_is_read_as_it_is_written(backup: BackupId) -> None:
    assert BackupId.parse(str(backup)) == backup


@settings(deadline=None)
@given(
    st.from_regex(r"(full|snapshot)-(manual-)?\d{8}T\d{6}(\.\d{6})?Z", fullmatch=True)
    | st.from_regex(r"archive-[a-z]{1,9}-\d{4}-\d{2}", fullmatch=True)
    | st.text()
)
def test_whatever_is_read_was_written_that_way(text: str) -> None:
    try:
        backup = BackupId.parse(text)
    except NotABackupId as refused:
        assert repr(text) in refused.what
    else:
        assert str(backup) == text


def test_ids_look_as_they_are_documented() -> None:
    moment = datetime(2026, 11, 22, 10, 37, 12, 123456, tzinfo=UTC)

    assert str(MIDNIGHT) == "full-20261122T000000Z"
    assert str(BackupId("full", moment, manual=True)) == "full-manual-20261122T103712.123456Z"
    assert MIDNIGHT.manifest_key == "manifests/full/full-20261122T000000Z.json"
    assert MIDNIGHT.attempt_prefix("a") == "full/2026/11/22/full-20261122T000000Z/a/"
    archive = BackupId.archive("financial", moment)
    assert str(archive) == "archive-financial-2026-11"
    assert archive.manifest_key == "manifests/archive/archive-financial-2026-11.json"
    assert archive.attempt_prefix("a") == "archive/financial/2026-11/archive-financial-2026-11/a/"


def test_a_moment_of_another_zone_is_named_in_utc() -> None:
    local = datetime(2026, 11, 22, 1, tzinfo=timezone(timedelta(hours=1)))
    assert str(BackupId("full", local)) == str(MIDNIGHT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "full",
        "weekly-20261122T000000Z",
        "full-20261322T000000Z",
        "full-20261122T000000",
        "full-20261122T000000.000000Z",
        "full-manual-20261122T000000Z",
        "../full-20261122T000000Z",
        "archive-20261122T000000Z",
        "archive-manual-20261122T103712.123456Z",
        "archive-financial-2026-13",
        "archive-Financial-2026-11",
        "full-20261122T000000Z\n",
        "full-\uff12\uff10\uff12\uff161122T000000Z",
    ],
)
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(NotABackupId):
        BackupId.parse(text)


def test_names_are_random_and_fit_postgresql() -> None:
    longest = BackupId("incremental", datetime(2026, 11, 22, 1, 2, 3, 4, tzinfo=UTC), manual=True)

    assert len({new_attempt() for _ in range(1_000)}) == len({new_pack_id() for _ in range(1_000)}) == 1_000
    assert len(f"{longest}.{new_attempt()}".encode()) <= 63
    assert envelope_key("owner", "attempt", "kek").startswith(envelope_prefix("owner", "attempt"))


@settings(deadline=None)
@given(scheduled | manual | archives)
def test_a_key_says_whose_it_is(backup: BackupId) -> None:
    attempt, pack = new_attempt(), new_pack_id()

    assert place_of(backup.attempt_prefix(attempt) + "database/users.pgdump.zst.enc/00000") == Place(attempt, backup)
    assert place_of(pack_key(pack)) == Place(None, pack=pack)
    assert place_of(envelope_key(str(backup), attempt, "kek-1")) == Place(attempt, backup, envelope=True)
    assert place_of(envelope_key(pack, attempt, "kek-1")) == Place(attempt, pack=pack, envelope=True)


@pytest.mark.parametrize(
    "key",
    [
        MIDNIGHT.manifest_key,
        "full/2026/11/22/full-20261122T000000Z/0123456789abcdef",
        "full/2026/11/22/full-20261122T000000Z/0123456789ABCDEF/x",
        "full/2026/11/23/full-20261122T000000Z/0123456789abcdef/x",
        "snapshot/2026/11/22/full-20261122T000000Z/0123456789abcdef/x",
        "archive/personal/2026-11/archive-financial-2026-11/0123456789abcdef/x",
        "archive/financial/2026-11/archive-financial-2026-11/0123456789abcdef",
        "wal/1/1/000000010000000000000001.0123456789abcdef.zst.enc",
        "packs/0123",
        "packs/" + "f" * 32 + "/x",
        "keys/somebody/0123456789abcdef/kek-1.json",
        "keys/full-20261122T000000Z/0123456789abcdef",
        "verification/full-20261122T000000Z/1.json",
        "",
    ],
)
def test_what_no_try_writes_is_nobodys(key: str) -> None:
    assert place_of(key) is None


def test_an_archives_own_pack_is_its_attempts_and_tagged_with_class_and_month() -> None:
    archive = BackupId.parse("archive-financial-2026-11")
    key = f"{archive.attempt_prefix('0123456789abcdef')}packs/{'f' * 32}"
    assert place_of(key) == Place("0123456789abcdef", backup=archive)
    assert archive.tags == {"retention-class": "financial", "month": "2026-11"}
    assert BackupId.parse("full-20261122T000000Z").tags == {}
