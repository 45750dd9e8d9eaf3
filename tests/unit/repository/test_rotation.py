"""Rotation: every data key gets another wrap, whatever hinders it, and an old key goes when nothing needs it (R7.1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.pipeline.keyring_file import KeyringBusy, KeyringFixed, held
from include.pipeline.keys import Keyring, UnknownKey, new_local_key
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository import rotation
from include.repository.envelopes import create_data_key, open_data_key, stored_data_keys
from include.repository.layout import envelope_key, new_attempt
from include.repository.rotation import NotWrapped, StillNeeded, due, make_keys, prove_all, retire, wrap_all
from include.sandbox.s3 import S3Server

KEYS = load_policy().keys
THEN = datetime(2026, 11, 22, tzinfo=UTC)
LATER = THEN + timedelta(days=30)
pytestmark = pytest.mark.requirement("R7.1")


@dataclass
class Stored:
    """A bucket, a keyring file, and data keys by owner and attempt."""

    bucket: Bucket
    path: Path
    data_keys: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)

    @property
    def keyring(self) -> Keyring:
        return Keyring.load(self.path)

    def write(self, owner: str, keyring: Keyring | None = None) -> tuple[str, str]:
        whose = (owner, new_attempt())
        dek = create_data_key(self.bucket, keyring or self.keyring, owner=owner, attempt=whose[1])
        self.data_keys[whose] = dek
        return whose

    def must_open(self, keyring: Keyring) -> None:
        for (owner, attempt), dek in self.data_keys.items():
            assert open_data_key(self.bucket, keyring, owner=owner, attempt=attempt) == dek

    def rotate(self, *, now: datetime = THEN) -> str:
        [kek] = make_keys(self.path, ["kek"], KEYS, now=now)
        return kek


@pytest.fixture
def stored(s3_primary: S3Server, bucket: str, tmp_path: Path) -> Stored:
    Keyring.create(tmp_path / "keyring.json", now=THEN)
    reached = Bucket(s3_primary.session(), bucket, region="eu-west-1", endpoint_url=s3_primary.endpoint_url)
    made = Stored(reached, tmp_path / "keyring.json")
    for owner in ("full-20261122T000000Z", "archive-financial-2026-11", "a" * 32, "wal-7123456789012345678"):
        made.write(owner)
    return made


def alone(keyring: Keyring, kek: str) -> Keyring:
    return replace(keyring, keks={kek: keyring.keks[kek]})


def test_every_owners_data_key_opens_with_the_new_key_alone(stored: Stored) -> None:
    before = stored.keyring
    new = stored.rotate()
    hidden, overwritten, *_ = (envelope_key(*whose, before.current_kek) for whose in stored.data_keys)
    stored.bucket.hide(hidden)  # readers look through it
    stored.bucket.put(overwritten, b"late")  # the oldest version counts

    done = wrap_all(stored.bucket, stored.keyring)

    assert (done.data_keys, done.wraps, done.refused) == (4, 4, ())
    stored.must_open(alone(stored.keyring, new))
    stored.must_open(before)
    assert wrap_all(stored.bucket, stored.keyring).wraps == 0
    assert prove_all(stored.bucket, stored.keyring).wraps == 4
    assert len(list(stored.bucket.versions("keys/"))) == 10  # nothing was written twice


def test_a_replica_gets_the_primarys_wraps_and_its_own_where_it_is_alone(stored: Stored, s3_replica: S3Server) -> None:
    replica = Bucket(
        s3_replica.session(),
        s3_replica.create_bucket(f"replica-{new_attempt()}"),
        region="us-east-1",
        endpoint_url=s3_replica.endpoint_url,
    )
    for key in list(stored.bucket.keys("keys/")):
        replica.create(key, stored.bucket.read(key))
    gone = next(iter(stored.data_keys))
    for version in list(stored.bucket.versions(f"keys/{gone[0]}/")):
        stored.bucket.delete_version(version.key, version.version_id)  # it expired in the primary first
    new = stored.rotate()

    done = wrap_all(replica, stored.keyring, primary=stored.bucket)

    assert (done.data_keys, done.wraps) == (4, 4)
    assert {found.wraps.keys() >= {new} for found in stored_data_keys(replica)} == {True}
    for owner, attempt in stored.data_keys.keys() - {gone}:
        key = envelope_key(owner, attempt, new)
        assert replica.read(key) == stored.bucket.read(key)  # else who compares the two would find them different
    assert not list(stored.bucket.keys(f"keys/{gone[0]}/"))
    replica_alone = alone(stored.keyring, new)
    for (owner, attempt), dek in stored.data_keys.items():
        assert open_data_key(replica, replica_alone, owner=owner, attempt=attempt) == dek


def test_a_lost_key_is_named_stops_no_other_and_breaks_nothing_that_was_rotated(stored: Stored, tmp_path: Path) -> None:
    old = stored.keyring
    first = stored.rotate()
    wrap_all(stored.bucket, stored.keyring)
    lost = stored.write("full-20261123T000000Z", Keyring.create(tmp_path / "lost.json"))
    second = stored.rotate(now=THEN + timedelta(days=400))
    without_old = stored.keyring.without_kek(old.current_kek)

    done = wrap_all(stored.bucket, without_old)

    assert (done.data_keys, done.wraps, len(done.refused)) == (5, 4, 1)
    with pytest.raises(NotWrapped, match=f"{lost[0]}.*{lost[1]}"):
        done.require(stored.bucket)
    assert [refused.data_key for refused in prove_all(stored.bucket, without_old).refused] == [
        f"the data key of {lost[0]} (attempt {lost[1]})"
    ]
    del stored.data_keys[lost]
    stored.must_open(alone(without_old, first))
    stored.must_open(alone(without_old, second))


@pytest.mark.parametrize("content", [b"{}", b"", None])
def test_what_lies_where_a_wrap_belongs_and_is_none_is_named(stored: Stored, content: bytes | None) -> None:
    [old] = stored.keyring.keks
    new = stored.rotate()
    (owner, attempt), *_ = stored.data_keys
    if content is None:  # a wrap of another data key, by the right key
        create_data_key(stored.bucket, alone(stored.keyring, new), owner=owner, attempt=attempt)
    else:
        stored.bucket.create(envelope_key(owner, attempt, new), content)

    proved = prove_all(stored.bucket, stored.keyring)

    assert [attempt in refused.data_key for refused in proved.refused] == [True]
    assert proved.wraps == 3
    with pytest.raises(StillNeeded, match=attempt):
        retire(stored.path, old, [stored.bucket], KEYS, now=LATER)
    stored.must_open(stored.keyring if content is not None else stored.keyring.without_kek(new))


def test_what_is_written_with_the_old_keyring_meanwhile_is_caught(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, wrap_one = stored.keyring, rotation._wrap
    new = stored.rotate()
    written: list[tuple[str, str]] = []

    def write_first(*arguments: object) -> int:
        if len(written) < 3:
            written.append(stored.write("a-earlier-in-the-listing", before))
        return int(wrap_one(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "_wrap", write_first)
    done = wrap_all(stored.bucket, stored.keyring)

    assert len(written) >= 3
    assert done.data_keys == done.wraps == 4 + len(written)
    stored.must_open(alone(stored.keyring, new))


def test_a_data_key_that_goes_while_it_is_wrapped_is_not_brought_back(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.rotate()
    create, (owner, attempt) = stored.bucket.create, next(iter(stored.data_keys))

    def reap_first(key: str, body: bytes) -> None:
        for version in list(stored.bucket.versions(f"keys/{owner}/{attempt}/")):
            stored.bucket.delete_version(version.key, version.version_id)
        create(key, body)

    monkeypatch.setattr(stored.bucket, "create", reap_first)
    done = wrap_all(stored.bucket, stored.keyring)

    assert (done.wraps, done.refused) == (3, ())
    assert not list(stored.bucket.versions(f"keys/{owner}/{attempt}/"))  # a dead try would look alive


def test_a_store_that_ignores_the_condition_keeps_the_first_of_two_wraps(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored.bucket, "create", stored.bucket.put)  # as Ceph does
    new = stored.rotate()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: wrap_all(stored.bucket, stored.keyring), range(2)))

    assert [outcome.refused for outcome in both] == [(), ()]
    assert prove_all(stored.bucket, stored.keyring).refused == ()
    stored.must_open(alone(stored.keyring, new))


def test_two_rotations_at_once_make_one_key_and_both_wrap(stored: Stored) -> None:
    def rotate(_: int) -> int:
        try:
            make_keys(stored.path, ["kek", "signing"], KEYS, now=THEN)
        except KeyringBusy:
            return -1  # it waits, and comes again
        return wrap_all(stored.bucket, stored.keyring).wraps

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(rotate, range(4)))
    wrap_all(stored.bucket, stored.keyring)

    assert max(ended) >= 0
    assert (len(stored.keyring.keks), len(stored.keyring.signing_keys)) == (2, 2)
    stored.must_open(alone(stored.keyring, stored.keyring.lasting_keks[0]))
    assert len(list(stored.bucket.versions("keys/"))) == 8
    assert make_keys(stored.path, ["kek", "signing"], KEYS, now=THEN + timedelta(days=6)) == ()
    assert len(make_keys(stored.path, ["kek", "signing"], KEYS, now=THEN + timedelta(days=8))) == 2


def test_whoever_changes_the_file_is_alone_and_the_dead_let_go(stored: Stored) -> None:
    with held(stored.path), pytest.raises(KeyringBusy, match="somebody else"):
        stored.rotate()
    assert stored.rotate() in stored.keyring.lasting_keks


def test_during_the_handover_both_files_open_and_believe_everything(stored: Stored) -> None:
    before = replace(stored.keyring, clock=lambda: THEN)
    made = make_keys(stored.path, ["kek", "signing"], KEYS, now=THEN)
    after = replace(stored.keyring, clock=lambda: THEN + timedelta(days=6, hours=23))

    for writer, reader in ((before, after), (after, before)):
        owner, attempt = stored.write("full-20261124T000000Z", writer)
        dek = stored.data_keys[owner, attempt]
        assert open_data_key(stored.bucket, reader, owner=owner, attempt=attempt) == dek
        reader.check({"id": 1}, writer.sign({"id": 1}))
    then = replace(after, clock=lambda: THEN + timedelta(days=7))
    assert (then.current_keks, then.current_signing_key) == ((made[0],), made[1])
    assert (after.current_keks[-1], after.current_signing_key) == (made[0], before.current_signing_key)


@pytest.mark.parametrize(
    "when", ["current", "handover", "used", "unwrapped", "unwrapped in one", "one of two", "damaged", "unknown"]
)
def test_a_key_that_is_needed_is_not_retired(stored: Stored, when: str, s3_replica: S3Server, tmp_path: Path) -> None:
    old, now, buckets = stored.keyring.current_kek, LATER, [stored.bucket]
    words, error = {
        "current": ("no other follows", StillNeeded),
        "handover": ("wraps until 2026-11-29", StillNeeded),
        "used": ("within the last 7 days", StillNeeded),
        "unwrapped": ("has no wrap by kek-", StillNeeded),
        "unwrapped in one": ("has no wrap by kek-", StillNeeded),
        "one of two": ("has no wrap by kek-", StillNeeded),
        "damaged": ("not an envelope", StillNeeded),
        "unknown": ("is not in", UnknownKey),
    }[when]
    if when != "current":
        new = stored.rotate()
        if when != "unwrapped":
            wrap_all(stored.bucket, stored.keyring)
        if when == "handover":
            now = THEN + timedelta(days=6)
        if when == "used":
            now = datetime.now(UTC) + timedelta(days=6)
        if when == "damaged":
            key = envelope_key(*next(iter(stored.data_keys)), new)
            for version in list(stored.bucket.versions(key)):
                stored.bucket.delete_version(key, version.version_id)
            stored.bucket.put(key, b"{}")
        if when == "one of two":  # as with KMS: a key a region, and each must be enough
            two = stored.keyring.with_keks([new_local_key()], now=THEN)
            stored.path.write_bytes(two.content())
        if when == "unwrapped in one":
            name = s3_replica.create_bucket(f"replica-{new_attempt()}")
            second = Bucket(s3_replica.session(), name, region="us-east-1", endpoint_url=s3_replica.endpoint_url)
            [(owner, attempt), *_] = stored.data_keys
            key = envelope_key(owner, attempt, old)
            second.create(key, stored.bucket.read(key))
            buckets.append(second)
    content = stored.path.read_bytes()

    with pytest.raises(error, match=words):
        retire(stored.path, "kek-x" if when == "unknown" else old, buckets, KEYS, now=now)

    assert stored.path.read_bytes() == content
    stored.must_open(stored.keyring)


def test_a_key_that_nothing_needs_is_retired_and_its_copy_is_private(stored: Stored) -> None:
    old = stored.keyring
    stored.rotate()
    wrap_all(stored.bucket, stored.keyring)
    retire(stored.path, old.current_kek, [stored.bucket], KEYS, now=LATER)

    assert old.current_kek not in stored.keyring.keks
    stored.must_open(stored.keyring)
    assert len(list(stored.bucket.versions("keys/"))) == 8  # old envelopes stay
    copies = sorted(stored.path.parent.glob("keyring.json.2*"))
    assert [copy.stat().st_mode & 0o777 for copy in copies] == [0o600, 0o600]
    assert Keyring.load(copies[0]).current_kek == old.current_kek
    stored.must_open(Keyring.load(copies[1]))


def test_a_signing_key_is_retired_by_half_and_not_while_it_signs(stored: Stored) -> None:
    old = stored.keyring
    signature = old.sign({"id": 1})
    [new] = make_keys(stored.path, ["signing"], KEYS, now=THEN)
    early = THEN + timedelta(days=6)
    for key, now in ((old.current_signing_key, early), (new, early), (new, LATER)):
        with pytest.raises(StillNeeded, match="signs what is written now"):
            retire(stored.path, key, [], KEYS, now=now)
    retire(stored.path, old.current_signing_key, [], KEYS, now=LATER)

    assert stored.keyring.signing_keys[old.current_signing_key].private is None
    stored.keyring.check({"id": 1}, signature)
    assert replace(stored.keyring, clock=lambda: LATER).sign({"id": 2})["key"] == new


def test_keys_are_due_at_the_policys_age_and_once(stored: Stored) -> None:
    year = THEN.replace(year=2027)
    assert due(stored.keyring, KEYS, now=year - timedelta(days=1)) == ()
    assert due(stored.keyring, KEYS, now=year) == ("kek", "signing")
    stored.rotate(now=year)
    assert due(stored.keyring, KEYS, now=year) == ("signing",)


def test_a_file_that_may_not_be_replaced_is_refused_with_what_to_do() -> None:
    with pytest.raises(KeyringFixed, match="cannot be replaced here") as refused, held(Path("/proc/keyring.json")):
        pass
    assert "keyring rotate" in refused.value.mend
