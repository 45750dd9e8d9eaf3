"""Some objects, back into a bucket that is in use: what is there is never lost (R5.1)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.objects import ReturnedObjects, WouldOverwrite, return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.selection import NothingMatches
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server
from include.sources.objects import IndexEntry, NotVersioned


@pytest.fixture
def opened(catalog: Catalog, manifest: Manifest) -> OpenedBackup:
    return OpenedBackup(catalog, manifest, policy=load_policy().pipeline, progress=Progress("test"))


@pytest.fixture
def entries(opened: OpenedBackup) -> dict[str, IndexEntry]:
    return {entry.key: entry for name in opened.object_components() for entry in opened.objects(name)}


@pytest.fixture
def uploads(entries: dict[str, IndexEntry]) -> list[str]:
    return sorted(key for key in entries if key.startswith("uploads/"))


@pytest.fixture
def live(installation: Installation, opened: OpenedBackup) -> Iterator[Bucket]:
    """The application's bucket; after each test it is again what was backed up."""
    bucket = installation.application().objects
    yield bucket
    return_objects(opened, bucket, overwrite=True)


def elsewhere(s3_primary: S3Server, name: str) -> Bucket:
    return Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)


def versions(bucket: Bucket) -> set[str]:
    return {version.version_id for version in bucket.versions("")}


@pytest.mark.requirement("R5.1", "R2.2")
def test_files_that_a_user_deleted_come_back_and_nothing_else_is_written(
    opened: OpenedBackup, live: Bucket, entries: dict[str, IndexEntry], uploads: list[str]
) -> None:
    for key in uploads[:3]:
        live.delete(key)
    before = versions(live)
    returned = return_objects(opened, live, prefixes=["uploads/"])

    assert returned == ReturnedObjects(written=3, unchanged=len(uploads) - 3)
    assert len(versions(live) - before) == 3
    for key in uploads[:3]:
        answer = live.client.get_object(Bucket=live.name, Key=key)
        assert len(answer["Body"].read()) == entries[key].size
        assert {name: answer[name] for name in entries[key].headers} == entries[key].headers


@pytest.mark.requirement("R5.1")
def test_an_object_with_other_content_is_overwritten_only_when_that_is_said(
    opened: OpenedBackup, live: Bucket, uploads: list[str]
) -> None:
    content = live.read(uploads[0])
    live.put(uploads[0], b"by mistake")
    live.delete(uploads[1])
    before = versions(live)
    with pytest.raises(WouldOverwrite, match=rf"^1 objects .*{uploads[0]} in s3://{live.name}\."):
        return_objects(opened, live, keys=uploads[:3])
    refused = versions(live)
    returned = return_objects(opened, live, keys=uploads[:3], overwrite=True)

    assert refused == before
    assert (returned.written, returned.unchanged, list(returned.replaced)) == (2, 1, uploads[:1])
    assert live.read(uploads[0]) == content
    assert live.read(uploads[0], version_id=returned.replaced[uploads[0]]) == b"by mistake"


def test_a_single_object_is_not_taken_for_those_whose_names_begin_alike(
    opened: OpenedBackup, live: Bucket, uploads: list[str]
) -> None:
    live.put(f"{uploads[0]}.more", b"another")
    live.delete(uploads[0])
    assert return_objects(opened, live, keys=uploads[:1]) == ReturnedObjects(written=1)
    assert return_objects(opened, live, keys=uploads[:1]) == ReturnedObjects(unchanged=1)
    live.delete(f"{uploads[0]}.more")


def test_objects_go_under_another_prefix_beside_what_is_there(
    opened: OpenedBackup, live: Bucket, uploads: list[str]
) -> None:
    live.put(uploads[0], b"by mistake")
    returned = return_objects(opened, live, components=["media_files"], keys=uploads[:1], under="restored/")
    media = list(live.keys("media/"))

    assert returned.written == len(media) + 1
    assert sorted(live.keys("restored/")) == sorted(f"restored/{key}" for key in [*media, uploads[0]])
    assert live.read(uploads[0]) == b"by mistake"
    for key in list(live.keys("restored/")):
        live.delete(key)


@pytest.mark.requirement("R5.3")
def test_everything_comes_back_into_a_bucket_in_use_and_what_is_younger_stays(
    opened: OpenedBackup, live: Bucket, entries: dict[str, IndexEntry], uploads: list[str]
) -> None:
    live.put("uploads/younger", b"younger")
    for key in uploads[:2]:
        live.put(key, b"encrypted by somebody")
    returned = return_objects(opened, live, overwrite=True)

    assert (returned.written, returned.unchanged) == (2, len(entries) - 2)
    assert live.read("uploads/younger") == b"younger"
    live.delete("uploads/younger")


def test_without_versions_nothing_is_overwritten_whatever_is_said(
    opened: OpenedBackup, s3_primary: S3Server, uploads: list[str]
) -> None:
    name = f"plain-{secrets.token_hex(4)}"
    s3_primary.client().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    plain = elsewhere(s3_primary, name)
    written = return_objects(opened, plain, keys=uploads[:1])
    plain.put(uploads[0], b"in the way")
    with pytest.raises(NotVersioned, match=f"{name} keeps no versions") as refused:
        return_objects(opened, plain, keys=uploads[:2], overwrite=True)

    assert written.written == 1
    assert "put-bucket-versioning" in refused.value.mend
    assert list(plain.keys("")) == uploads[:1]
    assert plain.read(uploads[0]) == b"in the way"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"keys": ["uploads/{typo}"]}, r"no object uploads/.*\. Near it: uploads/"),
        ({"prefixes": ["uploads/", "upload/"]}, "no object below upload/"),
        ({"components": ["media"]}, "component media. It has: .*media_files"),
    ],
)
def test_what_the_backup_does_not_have_is_told_and_nothing_is_written(
    opened: OpenedBackup, live: Bucket, uploads: list[str], *, asked: dict[str, list[str]], told: str
) -> None:
    live.delete(uploads[0])
    before = versions(live)
    typo = uploads[1].removeprefix("uploads/")[:-1] + "~"
    wanted = {what: [name.format(typo=typo) for name in names] for what, names in asked.items()}
    with pytest.raises(NothingMatches, match=told):
        return_objects(opened, live, **wanted)
    assert versions(live) == before
