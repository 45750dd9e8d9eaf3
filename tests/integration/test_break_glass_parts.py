"""The command line on a bad day: one table, three objects, one file; and what exists is never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.pipeline.store import Bucket
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sources.postgres.login import DatabaseLogin

ROOT = Path(__file__).parents[2]


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


def restore(installation: Installation, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "include.cli", "--bucket", installation.backups, "restore", "latest", *arguments]
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **installation.break_glass()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def facts(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.requirement("R5.1")
def test_one_table_that_a_migration_emptied_is_given_back(
    installation: Installation, manifest: Manifest, server: DatabaseLogin
) -> None:
    """As docs/restore.md says it: beside the live one, then the rows are copied."""
    live = installation.synapse.database
    [(before,)] = ask(live, "SELECT md5(string_agg(u::text, ',' ORDER BY user_id)) FROM user_settings AS u")
    run(live, "TRUNCATE user_settings")
    done = restore(installation, "--database", "looked_at", "--table", "public.user_settings")
    rows = subprocess.run(
        "psql -X -d looked_at -c 'COPY public.user_settings TO STDOUT'"
        f" | psql -X -v ON_ERROR_STOP=1 -d {live.dbname} -c 'COPY public.user_settings FROM STDIN'",
        shell=True,
        env={"PATH": f"{installation.postgres.binaries}:{os.environ['PATH']}", **server.environment()},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "database looked_at: 1 tables" in done.stdout
    assert "left out: foreign key user_settings_user_id_fkey of public.user_settings" in done.stdout
    assert "left out: policy own_settings on public.user_settings" in done.stdout
    assert rows.returncode == 0, rows.stderr
    assert ask(live, "SELECT md5(string_agg(u::text, ',' ORDER BY user_id)) FROM user_settings AS u") == [(before,)]


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

    assert refused.returncode == 1
    assert f"1 objects are there with other content, and would be overwritten: {keys[3]}" in refused.stderr
    assert "--overwrite" in refused.stderr
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

    assert refused.returncode == 1
    assert f"would be replaced: environment/production.env in {checkout}" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert str(kept) in done.stdout
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
    installation: Installation, manifest: Manifest, server: DatabaseLogin, live: Bucket
) -> None:
    name, checkout = installation.synapse.database.dbname, installation.synapse.configuration
    fingerprint = installation.synapse.fingerprint()
    run(server.with_database(name), "CREATE TABLE damage (x int)")
    live.put(next(live.keys("media/")), b"damage")
    (checkout / "settings.yaml").write_text("damage")
    done = restore(
        installation,
        *("--database", name, "--objects", live.name, "--configuration", str(checkout), "--overwrite", "--json"),
    )
    told = facts(done)

    assert fingerprint.difference(installation.synapse.fingerprint()) == []
    assert ask(server.with_database(told["database"]["replaced"]), "SELECT count(*) FROM damage") == [(0,)]
    assert (Path(told["configuration"]["replaced"]) / "settings.yaml").read_text() == "damage"
    [(key, version)] = told["objects"]["replaced"].items()
    assert live.read(key, version_id=version) == b"damage"
    said = " ".join(done.stderr.split())
    assert f"The database {name} is replaced at the end, and kept as {told['database']['replaced']}" in said
    assert "1 objects are overwritten" in said


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

    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert databases(server) == before
