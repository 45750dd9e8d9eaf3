"""The command line on a bad day: one table, three objects, one file; and what exists is never lost."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from include.cli.__main__ import app
from include.errors import BackupError
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
from include.sources.postgres.login import DatabaseLogin


def ask(login: DatabaseLogin, query: str) -> list[tuple]:
    with login.connect(application_name="test", autocommit=True) as session:
        return session.execute(query.encode()).fetchall()


def run(login: DatabaseLogin, statement: str) -> None:
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(statement.encode())


def databases(server: DatabaseLogin) -> set[str]:
    return {name for (name,) in ask(server, "SELECT datname FROM pg_database")}


@pytest.fixture
def server(installation: Installation) -> Iterator[DatabaseLogin]:
    server = installation.postgres.superuser
    before = databases(server)
    yield server
    for name in databases(server) - before:
        run(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def live(installation: Installation) -> Bucket:
    return installation.application().objects


RUNBOOK = Path(__file__).parents[2] / "docs/restore.md"
HALF_GONE = "DELETE FROM user_settings WHERE user_id % 2 = 0"


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code as `main` gives it, and what it said."""

    code: int
    out: str
    said: str


def restore(installation: Installation, *arguments: str) -> Done:
    """In this process, for a Python of its own takes a second to start; `test_break_glass` starts one each time."""
    done = CliRunner().invoke(
        app, ["--bucket", installation.backups, "restore", "latest", *arguments], env=installation.break_glass()
    )
    if isinstance(done.exception, BackupError):
        return Done(1, done.stdout, f"{done.exception.what} {done.exception.mend}")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, " ".join(done.output.replace("│", " ").split()))


def facts(done: Done) -> dict:
    assert done.code == 0, done.said
    return json.loads(done.out)


def recipes() -> list[str]:
    """The commands of docs/restore.md that copy rows, with this test's names in them."""
    blocks = re.findall(r"```\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    return [block for block in blocks if "COPY public.messages TO STDOUT" in block]


@pytest.mark.requirement("R5.1")
@pytest.mark.parametrize(("harm", "recipe"), [("TRUNCATE user_settings", 0), (HALF_GONE, 1)])
def test_one_table_that_was_ruined_is_given_back_as_the_runbook_says(
    installation: Installation, manifest: Manifest, server: DatabaseLogin, *, harm: str, recipe: int
) -> None:
    live, content = installation.synapse.database, "SELECT md5(string_agg(u::text, ',' ORDER BY user_id)) FROM {} AS u"
    before = ask(live, content.format("user_settings"))
    run(live, harm)
    done = restore(installation, "--database", "looked_at", "--table", "public.user_settings")
    script = (
        recipes()[recipe].replace("public.messages", "public.user_settings").replace("-d synapse", f"-d {live.dbname}")
    )
    copied = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        env={"PATH": f"{installation.postgres.binaries}:{os.environ['PATH']}", **server.environment()},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.code == 0, done.said
    assert "database looked_at: 1 tables" in done.out
    assert "left out: foreign key user_settings_user_id_fkey of public.user_settings" in done.out
    assert "left out: policy own_settings on public.user_settings" in done.out
    assert copied.returncode == 0, copied.stderr
    assert ask(live, content.format("user_settings")) == before


@pytest.mark.requirement("R5.1")
def test_three_objects_that_a_user_deleted_are_given_back(
    installation: Installation, manifest: Manifest, live: Bucket
) -> None:
    keys = sorted(live.keys("uploads/"))[:4]
    for key in keys[:3]:
        live.delete(key)
    live.put(keys[3], b"by mistake")
    named = [argument for key in keys for argument in ("--object", key)]
    refused = restore(installation, "--objects", live.name, *named)
    gone = [key for key in keys[:3] if key in set(live.keys("uploads/"))]
    told = facts(restore(installation, "--objects", live.name, *named, "--overwrite", "--json"))["objects"]

    assert refused.code == 1
    assert f"1 objects are there with other content, and would be overwritten: {keys[3]}" in refused.said
    assert "--overwrite" in refused.said
    assert gone == []
    assert (told["objects"], list(told["replaced"])) == (4, keys[3:])
    assert live.read(keys[3], version_id=told["replaced"][keys[3]]) == b"by mistake"


@pytest.mark.requirement("R5.1")
def test_one_file_that_somebody_broke_is_given_back(installation: Installation, manifest: Manifest) -> None:
    checkout = installation.synapse.configuration
    path = checkout / "environment" / "production.env"
    before, mode = path.read_text(), path.stat().st_mode
    path.write_text("broken")
    refused = restore(installation, "--configuration", str(checkout), "--file", "environment/production.env")
    done = restore(
        installation, "--configuration", str(checkout), "--file", "environment/production.env", "--overwrite"
    )
    [kept] = checkout.parent.glob(f"{checkout.name}_replaced_*")

    assert refused.code == 1
    assert f"would be replaced: environment/production.env in {checkout}" in refused.said
    assert done.code == 0, done.said
    assert str(kept) in done.out
    assert (path.read_text(), path.stat().st_mode) == (before, mode)
    assert (kept / "environment/production.env").read_text() == "broken"


@pytest.mark.requirement("R5.1")
def test_components_go_each_where_it_belongs(
    installation: Installation, manifest: Manifest, server: DatabaseLogin, tmp_path: Path
) -> None:
    bucket = installation.primary.create_bucket("parts-of-a-backup")
    components = ("system_config", "media_files", "environment")
    told = facts(
        restore(
            installation,
            *("--database", "parts", "--objects", bucket, "--configuration", str(tmp_path / "parts"), "--json"),
            *(argument for name in components for argument in ("--component", name)),
            *("--under", "restored/"),
        )
    )

    assert told["database"]["tables"] == 2
    assert {name.split("/")[1] for name in _bucket(installation, bucket).keys("")} == {"media"}
    assert {Path(name).parent.name for name in told["configuration"]["files"]} == {"environment"}


def _bucket(installation: Installation, name: str) -> Bucket:
    return installation._bucket(installation.primary, name)


@pytest.mark.requirement("R5.3")
def test_everything_takes_the_place_of_what_there_is_and_that_is_kept(
    installation: Installation,
    manifest: Manifest,
    server: DatabaseLogin,
    live: Bucket,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, checkout = installation.synapse.database.dbname, installation.synapse.configuration
    fingerprint = installation.synapse.fingerprint()
    run(server.with_database(name), "CREATE TABLE damage (x int)")
    live.put(next(live.keys("media/")), b"damage")
    (checkout / "settings.yaml").write_text("damage")
    told = facts(
        restore(
            installation,
            *("--database", name, "--objects", live.name, "--configuration", str(checkout), "--overwrite", "--json"),
        )
    )

    assert fingerprint.difference(installation.synapse.fingerprint()) == []
    assert ask(server.with_database(told["database"]["replaced"]), "SELECT count(*) FROM damage") == [(0,)]
    assert (Path(told["configuration"]["replaced"]) / "settings.yaml").read_text() == "damage"
    [(key, version)] = told["objects"]["replaced"].items()
    assert live.read(key, version_id=version) == b"damage"
    assert f"{name} is replaced at the end, and kept as {told['database']['replaced']}" in caplog.text
    assert f"1 objects are overwritten, and the bucket keeps what they were: {key}" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--database", "x", "--object", "a"), 2, "--object needs --objects"),
        (("--objects", "x", "--table", "a"), 2, "--table needs --database"),
        (("--database", "x", "--under", "a/"), 2, "--under needs --objects"),
        (("--database", "x", "--file", "a"), 2, "--file needs --configuration"),
        (("--database", "x", "--objects", "y", "--table", "public.users"), 2, "nothing of it is for --objects"),
        (("--database", "x", "--component", "chat_histroy"), 1, "Near it: chat_history"),
        (("--database", "x", "--component", "media_files"), 1, "no component for these places called media_files"),
        (("--database", "x", "--table", "users"), 1, "Near it: public.users"),
        (("--database", "postgres", "--table", "public.users"), 1, "takes the place of none"),
        (("--database", "postgres", "--overwrite"), 1, "PGDATABASE"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    installation: Installation,
    manifest: Manifest,
    server: DatabaseLogin,
    *,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    before = databases(server)
    done = restore(installation, *arguments)

    assert done.code == code, done.said
    assert words in done.said
    assert databases(server) == before


# Objects, through the engine


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
def mended(installation: Installation, opened: OpenedBackup) -> Iterator[Bucket]:
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
    opened: OpenedBackup, mended: Bucket, entries: dict[str, IndexEntry], uploads: list[str]
) -> None:
    for key in uploads[:3]:
        mended.delete(key)
    before = versions(mended)
    returned = return_objects(opened, mended, prefixes=["uploads/"])

    assert returned == ReturnedObjects(written=3, unchanged=len(uploads) - 3)
    assert len(versions(mended) - before) == 3
    for key in uploads[:3]:
        answer = mended.client.get_object(Bucket=mended.name, Key=key)
        assert len(answer["Body"].read()) == entries[key].size
        assert {name: answer[name] for name in entries[key].headers} == entries[key].headers


@pytest.mark.requirement("R5.1")
def test_an_object_with_other_content_is_overwritten_only_when_that_is_said(
    opened: OpenedBackup, mended: Bucket, uploads: list[str]
) -> None:
    content = mended.read(uploads[0])
    mended.put(uploads[0], b"by mistake")
    mended.delete(uploads[1])
    before = versions(mended)
    with pytest.raises(WouldOverwrite, match=rf"^1 objects .*{uploads[0]} in s3://{mended.name}\."):
        return_objects(opened, mended, keys=uploads[:3])
    refused = versions(mended)
    returned = return_objects(opened, mended, keys=uploads[:3], overwrite=True)

    assert refused == before
    assert (returned.written, returned.unchanged, list(returned.replaced)) == (2, 1, uploads[:1])
    assert mended.read(uploads[0]) == content
    assert mended.read(uploads[0], version_id=returned.replaced[uploads[0]]) == b"by mistake"


def test_a_single_object_is_not_taken_for_those_whose_names_begin_alike(
    opened: OpenedBackup, mended: Bucket, uploads: list[str]
) -> None:
    mended.put(f"{uploads[0]}.more", b"another")
    mended.delete(uploads[0])
    assert return_objects(opened, mended, keys=uploads[:1]) == ReturnedObjects(written=1)
    assert return_objects(opened, mended, keys=uploads[:1]) == ReturnedObjects(unchanged=1)
    mended.delete(f"{uploads[0]}.more")


def test_objects_go_under_another_prefix_beside_what_is_there(
    opened: OpenedBackup, mended: Bucket, uploads: list[str]
) -> None:
    mended.put(uploads[0], b"by mistake")
    returned = return_objects(opened, mended, components=["media_files"], keys=uploads[:1], under="restored/")
    media = list(mended.keys("media/"))

    assert returned.written == len(media) + 1
    assert sorted(mended.keys("restored/")) == sorted(f"restored/{key}" for key in [*media, uploads[0]])
    assert mended.read(uploads[0]) == b"by mistake"
    for key in list(mended.keys("restored/")):
        mended.delete(key)


@pytest.mark.requirement("R5.3")
def test_everything_comes_back_into_a_bucket_in_use_and_what_is_younger_stays(
    opened: OpenedBackup, mended: Bucket, entries: dict[str, IndexEntry], uploads: list[str]
) -> None:
    mended.put("uploads/younger", b"younger")
    for key in uploads[:2]:
        mended.put(key, b"encrypted by somebody")
    returned = return_objects(opened, mended, overwrite=True)

    assert (returned.written, returned.unchanged) == (2, len(entries) - 2)
    assert mended.read("uploads/younger") == b"younger"
    mended.delete("uploads/younger")


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
    opened: OpenedBackup, mended: Bucket, uploads: list[str], *, asked: dict[str, list[str]], told: str
) -> None:
    mended.delete(uploads[0])
    before = versions(mended)
    typo = uploads[1].removeprefix("uploads/")[:-1] + "~"
    wanted = {what: [name.format(typo=typo) for name in names] for what, names in asked.items()}
    with pytest.raises(NothingMatches, match=told):
        return_objects(opened, mended, **wanted)
    assert versions(mended) == before
