"""Objects side by side in packs: each alone again, and nothing believed that was changed (R2.2, R4.5)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket, StoreError
from include.policy import Pipeline, load_policy
from include.repository.envelopes import open_data_key
from include.repository.layout import pack_key
from include.repository.manifest import Pack
from include.repository.packs import Member, PackRefused, PackWriter, check_pack, read_member
from include.sandbox.s3 import S3Server

ATTEMPT = "a" * 16
PACK_BYTES = 256 << 10
POLICY: Pipeline = load_policy().pipeline.model_copy(update={"segment_bytes": PACK_BYTES})


class Packs:
    """A bucket of packs and the keyring that opens them."""

    def __init__(self, bucket: Bucket, keyring: Keyring) -> None:
        self.bucket, self.keyring = bucket, keyring

    def writer(self) -> PackWriter:
        return PackWriter(
            self.bucket,
            self.keyring,
            component="user_uploads",
            retention_class="personal",
            attempt=ATTEMPT,
            policy=POLICY,
            progress=Progress("test"),
        )

    def write(self, *objects: bytes) -> tuple[list[Pack], list[tuple[Member, ...]]]:
        with self.writer() as writer:
            members = [writer.add(chunks(content)) for content in objects]
            writer.close()
        return writer.packs, members

    def read(self, packs: list[Pack], members: tuple[Member, ...]) -> bytes:
        by_id = {pack.id: pack for pack in packs}
        return b"".join(
            raw
            for member in members
            for raw in read_member(
                by_id[member.pack], member, bucket=self.bucket, key=self.key(by_id[member.pack]), in_flight=2
            )
        )

    def check(self, pack: Pack, members: list[tuple[Member, ...]]) -> None:
        own = [member for group in members for member in group if member.pack == pack.id]
        check_pack(pack, own, bucket=self.bucket, key=self.key(pack), in_flight=2, progress=Progress("test"))

    def key(self, pack: Pack) -> bytes:
        return open_data_key(self.bucket, self.keyring, owner=pack.id, attempt=pack.attempt)

    def unfinished(self) -> list:
        return self.bucket.client.list_multipart_uploads(Bucket=self.bucket.name).get("Uploads", [])


def chunks(content: bytes, size: int = 50_000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture(scope="module")
def packs(s3_primary: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Packs:
    name = s3_primary.create_bucket(f"packs-{secrets.token_hex(4)}")
    bucket = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    return Packs(bucket, Keyring.create(Path(tmp_path_factory.mktemp("keys")) / "keyring.json"))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 1_000) | st.integers(0, 400_000), max_size=6))
def test_any_objects_come_back_each_alone(packs: Packs, sizes: list[int]) -> None:
    objects = [secrets.token_bytes(size) for size in sizes]
    written, members = packs.write(*objects)

    assert [packs.read(written, each) for each in members] == objects
    assert all(packs.bucket.size(pack_key(pack.id)) == pack.stored_bytes <= PACK_BYTES for pack in written)
    assert sum(pack.raw_bytes for pack in written) == sum(sizes)
    assert sum(pack.members for pack in written) == sum(len(each) for each in members)
    for pack in written:
        packs.check(pack, members)


def test_an_object_larger_than_a_pack_spans_several(packs: Packs) -> None:
    content = secrets.token_bytes(3 * PACK_BYTES)
    written, (members,) = packs.write(content)

    assert len(written) == len(members) > 3
    assert packs.read(written, members) == content


def test_many_small_objects_share_a_pack_and_each_is_one_range(packs: Packs) -> None:
    written, members = packs.write(b"", b"one", b"two")

    assert len(written) == 1
    assert [packs.read(written, each) for each in members] == [b"", b"one", b"two"]
    offsets = [(each[0].offset, each[0].offset + each[0].length) for each in members]
    assert offsets[0][0] == 0
    assert [end for _, end in offsets] == [*(start for start, _ in offsets[1:]), written[0].stored_bytes]


def test_each_pack_has_a_key_of_its_own(packs: Packs) -> None:
    (one, *_), _ = packs.write(b"one")
    (two, *_), _ = packs.write(b"one")
    assert packs.key(one) != packs.key(two)


def flip(packs: Packs, pack: Pack, at: int) -> None:
    stored = bytearray(packs.bucket.read(pack_key(pack.id)))
    stored[at] ^= 1
    packs.bucket.put(pack_key(pack.id), bytes(stored))


@pytest.mark.requirement("R4.5")
def test_a_flipped_byte_is_found_and_the_other_objects_are_whole(packs: Packs) -> None:
    (pack,), members = packs.write(b"one" * 100, b"two" * 100)
    second = members[1][0]
    flip(packs, pack, second.offset + second.length // 2)
    for prove in (lambda: packs.check(pack, members), lambda: packs.read([pack], members[1])):
        with pytest.raises(StreamRefused, match=f"{pack_key(pack.id)} member 1"):
            prove()
    assert packs.read([pack], members[0]) == b"one" * 100


@pytest.mark.requirement("R4.5")
def test_a_flipped_byte_that_no_object_of_the_index_holds_is_found(packs: Packs) -> None:
    (pack,), members = packs.write(b"one", b"two")
    flip(packs, pack, members[1][0].offset)
    with pytest.raises(PackRefused, match=pack_key(pack.id)):
        packs.check(pack, members[:1])


def test_a_pack_that_is_gone_or_cut_is_named(packs: Packs) -> None:
    (pack,), members = packs.write(secrets.token_bytes(1_000))
    packs.bucket.put(pack_key(pack.id), packs.bucket.read(pack_key(pack.id))[:-1])
    with pytest.raises(StoreError, match=pack_key(pack.id)):
        packs.check(pack, members)
    packs.bucket.delete(pack_key(pack.id))
    for prove in (lambda: packs.check(pack, members), lambda: packs.read([pack], members[0])):
        with pytest.raises(PackRefused, match=pack_key(pack.id)):
            prove()


@pytest.mark.parametrize(
    "change", [{"member": 1}, {"offset": 1}, {"sha256": "0" * 64}, {"size": 2}, {"length": 10}, {"length": 10_000}]
)
def test_an_index_that_does_not_fit_its_pack_is_refused(packs: Packs, change: dict[str, object]) -> None:
    (pack,), ((member,),) = packs.write(b"one")
    wrong = member.model_copy(update=change)
    with pytest.raises((StreamRefused, PackRefused, StoreError), match=pack_key(pack.id)):
        packs.read([pack], (wrong,))
    with pytest.raises((StreamRefused, PackRefused), match=pack_key(pack.id)):
        packs.check(pack, [(wrong,)])


@pytest.mark.parametrize("change", [{"component": "media_files"}, {"retention_class": "financial"}])
def test_a_pack_of_another_component_does_not_open(packs: Packs, change: dict[str, str]) -> None:
    (pack,), (members,) = packs.write(b"one")
    with pytest.raises(StreamRefused, match=pack_key(pack.id)):
        packs.read([pack.model_copy(update=change)], members)


def test_a_pack_that_was_not_closed_leaves_nothing(packs: Packs) -> None:
    before = set(packs.bucket.keys("packs/"))
    large = POLICY.model_copy(update={"segment_bytes": 64 << 20, "part_bytes": 5 << 20})
    with pytest.raises(ZeroDivisionError), packs.writer() as writer:
        writer._policy = large
        writer.add(chunks(secrets.token_bytes(11 << 20)))
        assert packs.unfinished()
        raise ZeroDivisionError

    assert set(packs.bucket.keys("packs/")) == before
    assert packs.unfinished() == []
