"""Key-encryption keys in AWS KMS (here ministack's, a server a region): the key is theirs, and one region is enough."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from include.pipeline import kms
from include.pipeline.keys import Keyring, WrapRefused, new_data_key
from include.pipeline.kms import KmsKey, KmsUnavailable, NotAKmsKey
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import envelope_key
from include.repository.rotation import NotRotated, make_keys, prove_all, retire, wrap_all
from include.sandbox.s3 import S3Server

OWNER = {"owner": "full-20261122T000000Z", "attempt": "0123456789abcdef"}
KEYS = load_policy().keys
pytestmark = pytest.mark.requirement("R7.1", "R3.2")


@pytest.fixture(scope="module")
def regions(sandbox_directory: Path) -> Iterator[dict[str, S3Server]]:
    """KMS in two regions, on servers of this module's own: who stops one starts it again."""
    with ExitStack() as servers:
        yield {
            name: servers.enter_context(S3Server(sandbox_directory / f"kms-{name}", region=name))
            for name in ("eu-west-1", "us-east-1")
        }


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stopped stays stopped: the client's own trying again would only take its seconds."""
    monkeypatch.setattr(kms, "_TRIES", 1)


@contextmanager
def stopped(*servers: S3Server) -> Iterator[None]:
    for server in servers:
        server.stop()
    try:
        yield
    finally:
        for server in servers:
            server.start()


def new_key(server: S3Server) -> KmsKey:
    client = server.session().client("kms", endpoint_url=server.endpoint_url)
    arn = client.create_key()["KeyMetadata"]["Arn"]
    return KmsKey.of_arn(arn, endpoint_url=server.endpoint_url, sessions=lambda _: server.session())


def two_keys(regions: dict[str, S3Server]) -> list[KmsKey]:
    return [new_key(server) for server in regions.values()]


def keyring(path: Path, regions: dict[str, S3Server]) -> Keyring:
    """As another process reads it."""
    return Keyring.load(path, sessions=lambda region: regions[region].session())


def test_each_data_key_is_wrapped_in_both_regions_and_either_is_enough(
    regions: dict[str, S3Server], tmp_path: Path, s3_primary: S3Server, bucket: str
) -> None:
    path, store = tmp_path / "keyring.json", stored_in(s3_primary, bucket)
    Keyring.create(path, kms=two_keys(regions))
    keks = keyring(path, regions).current_keks

    dek = create_data_key(store, keyring(path, regions), **OWNER)

    assert {envelope_key(**OWNER, kek_id=kek) for kek in keks} == set(store.keys("keys/"))
    assert len(keks) == 2
    for server in regions.values():
        with stopped(server):
            assert open_data_key(store, keyring(path, regions), **OWNER) == dek
            with pytest.raises(KmsUnavailable, match=server.region) as refused:
                create_data_key(store, keyring(path, regions), owner="another", attempt="0" * 16)
            assert "every current key must answer" in refused.value.mend
    with stopped(*regions.values()), pytest.raises(KmsUnavailable, match=r"KMS key arn:aws:kms:\S+ in "):
        open_data_key(store, keyring(path, regions), **OWNER)


def test_a_key_that_is_silent_is_not_asked_for_every_data_key(
    regions: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(regions["eu-west-1"])
    sealed = key.seal(bytes(32), OWNER)
    with stopped(regions["eu-west-1"]), pytest.raises(KmsUnavailable):
        key.open(sealed, OWNER)
    with pytest.raises(KmsUnavailable, match="eu-west-1"):
        key.open(sealed, OWNER)  # it would answer by now, and is not asked
    monkeypatch.setattr(kms, "time", type("later", (), {"monotonic": lambda: time.monotonic() + kms.SILENT_FOR}))
    assert key.open(sealed, OWNER) == bytes(32)


def test_what_kms_wraps_is_bound_and_no_key_is_on_the_disk(regions: dict[str, S3Server], tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    Keyring.create(path, kms=two_keys(regions))
    ring = keyring(path, regions)
    envelope = ring.wrap(dek := new_data_key(), **OWNER)

    assert ring.unwrap(envelope, **OWNER) == dek
    for other in ({**OWNER, "owner": "full-20261123T000000Z"}, {**OWNER, "attempt": "f" * 16}):
        with pytest.raises(WrapRefused):
            ring.unwrap({**envelope, **other}, **other)
    with pytest.raises(WrapRefused):
        ring.unwrap({**envelope, "kek": ring.current_keks[0]}, **OWNER)
    document = json.loads(path.read_text())
    assert [set(entry) for entry in document["keks"]] == [{"id", "kms"}] * 2
    assert document["keks"][0]["kms"].keys() == {"key", "region", "endpoint"}


def test_an_alias_is_pinned_and_what_is_no_key_is_refused(regions: dict[str, S3Server]) -> None:
    server = regions["eu-west-1"]
    key = new_key(server)
    client = server.session().client("kms", endpoint_url=server.endpoint_url)
    client.create_alias(AliasName="alias/backups", TargetKeyId=key.key)
    alias = KmsKey(
        "alias/backups",
        region="eu-west-1",
        endpoint_url=server.endpoint_url,
        sessions=lambda _: server.session(),
    )

    assert alias.pinned().key == key.key
    with pytest.raises(NotAKmsKey, match="alias/backups"):
        KmsKey.of_arn("alias/backups")
    missing = KmsKey.of_arn(
        key.key[:-1] + ("0" if key.key[-1] != "0" else "1"),
        endpoint_url=server.endpoint_url,
        sessions=lambda _: server.session(),
    )
    with pytest.raises(KmsUnavailable, match="NotFound") as refused:
        missing.pinned()
    assert "no such key" in refused.value.mend


def test_a_keyring_moves_to_kms_and_its_keys_are_rotated_there(
    regions: dict[str, S3Server], tmp_path: Path, s3_primary: S3Server, bucket: str
) -> None:
    path, store = tmp_path / "keyring.json", stored_in(s3_primary, bucket)
    local = Keyring.create(path)
    now = local.clock()
    dek = create_data_key(store, local, **OWNER)
    sessions = lambda region: regions[region].session()  # noqa: E731
    made = make_keys(path, ["kek"], KEYS, kms=two_keys(regions), sessions=sessions, now=now)
    wrap_all(store, keyring(path, regions))
    assert prove_all(store, keyring(path, regions)).wraps == 2
    later = KEYS.rotation.after(now)
    retire(path, local.current_kek, [store], KEYS, sessions=sessions, now=later)

    assert keyring(path, regions).lasting_keks == made
    assert open_data_key(store, keyring(path, regions), **OWNER) == dek
    for kms_keys, words in (
        ([], "makes them itself"),
        ([new_key(regions["eu-west-1"])], "No new key is named for us-east-1"),
        ([keyring(path, regions).keks[kek].key for kek in made], "is in the keyring already"),
    ):
        with pytest.raises(NotRotated, match=words):
            make_keys(path, ["kek"], KEYS, kms=kms_keys, sessions=sessions, now=later)
    assert len(make_keys(path, ["kek"], KEYS, kms=two_keys(regions), sessions=sessions, now=later)) == 2


def stored_in(server: S3Server, bucket: str) -> Bucket:
    return Bucket(server.session(), bucket, region=server.region, endpoint_url=server.endpoint_url)
