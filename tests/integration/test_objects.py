"""The application's objects: which version of each, whatever it is called, and all of it back (R2.2, R5.1)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.backup import objects as copying
from include.backup.full import make_full_backup
from include.backup.verify import check_integrity
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, ObjectVersion
from include.policy import Policy, load_policy
from include.recovery.objects import TargetNotEmpty, restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.contents import object_index
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.objects import NotVersioned, objects_as_of, require_versions

BACKUP = BackupId("full", datetime(2026, 11, 22, tzinfo=UTC))
MIB = 1 << 20

# Which version: a listing, and what it must say


class History:
    """One key's versions as a store keeps them: a put or a deletion at a whole second each."""

    def __init__(self, events: list[tuple[int, bool]]) -> None:
        self.events = sorted(events, key=lambda event: event[0])

    def listing(self, key: str = "key") -> list[ObjectVersion]:
        """As `Bucket.versions` tells it: newest first; in a shared second the latest, then versions, then markers."""
        last = len(self.events) - 1
        told = [
            ObjectVersion(key, str(number), moment(second), 1, "", deleted=not put, latest=number == last)
            for number, (second, put) in reversed(list(enumerate(self.events)))
        ]
        return sorted(told, key=lambda version: (-version.modified.timestamp(), not version.latest, version.deleted))

    def expected(self, second: int) -> int | None:
        """The plain rule: what the second's last put left, or what was there before it; a deletion in it is ignored."""
        present: int | None = None
        for number, (at, put) in enumerate(self.events):
            if at < second:
                present = number if put else None
            elif at == second and put:
                present = number
        return present


def moment(second: int) -> datetime:
    return datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=second)


def as_of(listing: list[ObjectVersion], second: int, *named: str) -> list[int]:
    found = objects_as_of(listing, moment(second) + timedelta(milliseconds=700), named=frozenset(named))
    return [int(version.version_id) for version in found]


seconds_apart = st.lists(st.tuples(st.integers(0, 12), st.booleans()), unique_by=lambda event: event[0])
seconds_shared = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8)


@settings(deadline=None, max_examples=300)
@given(events=seconds_apart, second=st.integers(-1, 13))
def test_created_in_the_second_is_included_and_deleted_in_it_is_ignored(
    events: list[tuple[int, bool]], second: int
) -> None:
    history = History(events)
    expected = history.expected(second)

    assert as_of(history.listing(), second) == ([] if expected is None else [expected])


@settings(deadline=None, max_examples=300)
@given(events=seconds_shared, second=st.integers(-1, 4))
def test_where_seconds_are_shared_no_object_is_missed(events: list[tuple[int, bool]], second: int) -> None:
    """The store does not tell what came first within a second: an object too many may come, one too few never."""
    history = History(events)
    found = as_of(history.listing(), second)

    assert history.expected(second) is None or len(found) == 1
    assert all(history.events[number][0] <= second and history.events[number][1] for number in found)


@settings(deadline=None, max_examples=300)
@given(events=seconds_apart, second=st.integers(-1, 13))
def test_what_the_database_names_is_taken_when_it_is_younger(events: list[tuple[int, bool]], second: int) -> None:
    history = History(events)
    younger = [number for number, (at, put) in enumerate(history.events) if at > second and put]
    expected = history.expected(second)
    wanted = [expected] if expected is not None else younger[:1]

    assert as_of(history.listing(), second, "key") == wanted
    assert as_of(history.listing(), second, "another") == ([] if expected is None else [expected])


@settings(deadline=None)
@given(events=st.lists(seconds_apart, max_size=4), second=st.integers(-1, 13))
def test_one_key_tells_nothing_about_the_next(events: list[list[tuple[int, bool]]], second: int) -> None:
    histories = [History(each) for each in events]
    listing = [version for number, each in enumerate(histories) for version in each.listing(f"key-{number}")]
    found = {version.key for version in objects_as_of(listing, moment(second))}

    assert found == {f"key-{n}" for n, each in enumerate(histories) if each.expected(second) is not None}


# Real objects, there and back


@dataclass(frozen=True)
class Put:
    """One object as an application writes it."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: str = ""


ODD: dict[str, Put] = {
    "uploads/a name with  spaces .txt": Put(b"spaces"),
    "uploads/\u00e9 composed": Put(b"NFC"),
    "uploads/e\u0301 decomposed": Put(b"NFD"),
    "uploads/../up/./here": Put(b"dots"),
    "uploads//double//slash/": Put(b"slashes"),
    "uploads/line\nend\ttab": Put(b"control characters"),
    "uploads/plus+percent%20&equals=?hash#": Put(b"url"),
    "uploads/quote'\"<tag>": Put(b"xml"),
    "uploads/\N{PARTY POPPER}": Put(b"four bytes of UTF-8"),
    "uploads/" + "long" * 250: Put(b"a key of 1,008 bytes"),
    "uploads/empty": Put(b""),
    "media/typed.jpg": Put(
        b"\xff\xd8",
        {"ContentType": "image/jpeg", "CacheControl": "max-age=60", "ContentDisposition": "inline"},
        {"owner": "42", "camera": "x y/z=1"},
        "kind=holiday&place=Z%C3%BCrich%20%2B",
    ),
    "media/page.gz": Put(b"\x1f\x8b", {"ContentType": "text/html", "ContentEncoding": "gzip", "ContentLanguage": "de"}),
    "nobody/named/this": Put(b"unclassified"),
}
MANY = 1_050
PARTS = "generated/in parts.bin"
NAMED, ABSENT = "uploads/younger, and named by the database", "uploads/named, and nowhere"


@dataclass(frozen=True)
class Restored:
    """A backup of the odd objects, and the bucket that they were restored into."""

    manifest: Manifest
    opened: OpenedBackup
    source: Bucket
    target: Bucket
    in_parts: bytes
    catalog_facts: dict[str, Any]


def policy() -> Policy:
    whole = load_policy()
    references = (f"SELECT unnest(ARRAY['{NAMED}', '{ABSENT}', NULL])",)
    objects = whole.sources.objects.model_copy(update={"references": references})
    return whole.model_copy(update={"sources": whole.sources.model_copy(update={"objects": objects})})


def put(bucket: Bucket, key: str, what: Put) -> None:
    tags = {"Tagging": what.tags} if what.tags else {}
    bucket.client.put_object(
        Bucket=bucket.name, Key=key, Body=what.body, Metadata=dict(what.metadata), **what.headers, **tags
    )


def put_in_parts(bucket: Bucket, key: str, parts: list[bytes]) -> None:
    place = {"Bucket": bucket.name, "Key": key}
    upload = bucket.client.create_multipart_upload(**place)["UploadId"]
    sent = [
        {
            "PartNumber": number,
            "ETag": bucket.client.upload_part(**place, UploadId=upload, PartNumber=number, Body=part)["ETag"],
        }
        for number, part in enumerate(parts, start=1)
    ]
    bucket.client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": sent})


class Meddler:
    """An application that goes on: it changes objects once the second of the consistency point is over."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._lock, self._done = bucket, threading.Lock(), False
        self._list_component = copying.list_component

    def __call__(self, source: Bucket, component: Any, moment: datetime, **options: Any) -> Iterator[ObjectVersion]:
        with self._lock:
            if not self._done:
                while source.clock() <= moment:
                    pass
                self.meddle()
                self._done = True
        return self._list_component(source, component, moment, **options)

    def meddle(self) -> None:
        self._bucket.put("uploads/overwritten", b"after")
        self._bucket.delete("uploads/deleted")
        self._bucket.put("uploads/new", b"new")
        self._bucket.put(NAMED, b"named")
        self._bucket.put(NAMED, b"named, and overwritten")


@pytest.fixture(scope="module")
def restored(
    postgres18: PostgresServer, s3_primary: S3Server, s3_replica: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restored]:
    directory, whole = tmp_path_factory.mktemp("objects"), policy()
    installation = Installation.make(
        directory, postgres=postgres18, primary=s3_primary, replica=s3_replica, suffix="-objects", scale=0.01
    )
    application, catalog = installation.application(), installation.catalog()
    source, in_parts = application.objects, secrets.token_bytes(11 * MIB)
    for key, what in ODD.items():
        put(source, key, what)
    put_in_parts(source, PARTS, [in_parts[: 5 * MIB], in_parts[5 * MIB :]])
    for key in ("uploads/overwritten", "uploads/deleted"):
        source.put(key, b"before")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: source.put(f"uploads/many/{number:04d}", b"%d" % number), range(MANY)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "list_component", Meddler(source))
        manifest = make_full_backup(
            BACKUP, slot=None, application=application, catalog=catalog, policy=whole, scratch=directory
        )
    facts = check_integrity(catalog, BACKUP, whole, scratch=directory)
    target = Bucket(
        s3_primary.session(),
        s3_primary.create_bucket("objects-restored"),
        region=s3_primary.region,
        endpoint_url=s3_primary.endpoint_url,
    )
    opened = OpenedBackup(catalog, manifest, policy=whole.pipeline, progress=Progress("test"))
    restore_objects(opened, target)
    yield Restored(manifest, opened, source, target, in_parts, facts)
    installation.synapse.destroy()


@pytest.mark.requirement("R2.2", "R5.1")
@pytest.mark.parametrize("key", ODD)
def test_an_odd_object_comes_back_with_everything_it_carries(restored: Restored, key: str) -> None:
    what = ODD[key]
    answer = restored.target.client.get_object(Bucket=restored.target.name, Key=key)

    assert answer["Body"].read() == what.body
    assert answer["Metadata"] == what.metadata
    assert {name: answer[name] for name in what.headers} == what.headers
    assert restored.target.tags(key) == restored.source.tags(key)


def test_tags_are_not_lost_on_both_sides_alike(restored: Restored) -> None:
    assert restored.target.tags("media/typed.jpg") == {"kind": "holiday", "place": "Zürich +"}


def test_an_object_that_was_uploaded_in_parts_comes_back(restored: Restored) -> None:
    assert restored.target.read(PARTS) == restored.in_parts


def test_more_objects_than_a_listing_holds_come_back(restored: Restored) -> None:
    assert [restored.target.read(key) for key in restored.target.keys("uploads/many/")] == [
        b"%d" % number for number in range(MANY)
    ]


def test_the_backup_holds_every_object_of_its_moment_and_no_other(restored: Restored) -> None:
    changed = {"uploads/new", "uploads/deleted"}

    assert set(restored.target.keys("")) == (set(restored.source.keys("")) - {"uploads/new"}) | {"uploads/deleted"}
    assert set(restored.target.keys("")) & changed == {"uploads/deleted"}
    assert restored.manifest.objects.objects == restored.catalog_facts["objects"] == len(set(restored.target.keys("")))


@pytest.mark.requirement("R4.3")
def test_what_changed_while_the_backup_ran_is_as_it_was(restored: Restored) -> None:
    assert restored.target.read("uploads/overwritten") == restored.target.read("uploads/deleted") == b"before"


def test_what_the_database_names_is_there_though_it_is_younger(restored: Restored) -> None:
    assert restored.target.read(NAMED) == b"named"
    assert any("names 1 objects" in warning and ABSENT in warning for warning in restored.manifest.warnings)


@pytest.mark.requirement("R8.1")
def test_what_no_component_names_is_personal_data_and_a_warning(restored: Restored) -> None:
    (entry,) = restored.opened.objects("unclassified_objects")

    assert entry.key == "nobody/named/this"
    assert restored.manifest.artifact(object_index("unclassified_objects")).retention_class == "personal"
    assert any("1 objects" in warning and "in no component" in warning for warning in restored.manifest.warnings)


def test_one_component_can_be_restored_alone(restored: Restored, s3_primary: S3Server, bucket: str) -> None:
    target = Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    restore_objects(restored.opened, target, components=["media_files"])

    assert set(target.keys("")) == set(restored.target.keys("media/"))


def test_a_bucket_that_holds_something_is_not_restored_into(restored: Restored) -> None:
    with pytest.raises(TargetNotEmpty, match=f"s3://{restored.target.name} is not empty"):
        restore_objects(restored.opened, restored.target)


def test_a_bucket_without_versions_cannot_be_backed_up(s3_primary: S3Server) -> None:
    client, name = s3_primary.client(), f"plain-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    plain = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    with pytest.raises(NotVersioned, match=name) as refused:
        require_versions(plain)
    assert "put-bucket-versioning" in refused.value.mend
