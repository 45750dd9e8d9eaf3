"""A snapshot: the cluster's files, the log to one consistency point, and everything of that moment (R1.3, R5.5)."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from include.backup import base, snapshot, start
from include.backup.adoption import Adopted
from include.backup.snapshot import make_snapshot
from include.backup.verify import check_integrity, check_sizes, prove_start
from include.errors import BackupError
from include.pipeline.process import SourceFailed, run_source
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.policy import load_policy
from include.recovery.cluster import room
from include.recovery.cluster.room import NoRoom
from include.recovery.database import RestoreDiffers
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import BASE, BASE_FILES, INVENTORY, SERVER_FILES, SETTINGS, tablespace_tar
from include.repository.layout import BackupId
from include.repository.lsn import Lsn, segment_start
from include.repository.manifest import Manifest, Slot
from include.repository.wal import WalArchive, WalSession
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.basebackup import TarScanner
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.sessions import run_sessions
from include.sources.postgres.slots import ANCHOR
from include.sources.postgres.tools import find_tools

ROOT = Path(__file__).parents[2]
POLICY = load_policy()
WEEK = timedelta(days=7)
SLOT = Slot(start=datetime(2026, 11, 1, tzinfo=UTC), end=datetime(2026, 11, 8, tzinfo=UTC))
SUNDAY = BackupId("snapshot", SLOT.end)
OTHERS = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'snapshot-%'"
SLOTS = "SELECT slot_name::text FROM pg_replication_slots"


@dataclass(frozen=True)
class Taken:
    """An installation and its snapshot."""

    installation: Installation
    manifest: Manifest
    scratch: Path

    def take(self, backup: BackupId, slot: Slot | None = None) -> Manifest:
        return take(self.installation, self.scratch, backup, slot)

    def opened(self, manifest: Manifest | None = None) -> OpenedBackup:
        progress = Progress("reading", scratch=self.scratch)
        return OpenedBackup(
            self.installation.catalog(), manifest or self.manifest, policy=POLICY.pipeline, progress=progress
        )

    def json(self, name: str) -> Any:
        return json.loads(b"".join(self.opened().read(name)))

    def ask(self, query: str) -> list[Any]:
        with self.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            return [row[0] for row in session.execute(query.encode())]


def take(installation: Installation, scratch: Path, backup: BackupId, slot: Slot | None = None) -> Manifest:
    return make_snapshot(
        backup,
        slot=slot,
        application=installation.application(),
        catalog=installation.catalog(),
        policy=POLICY,
        scratch=scratch,
    )


@pytest.fixture(scope="module", params=[18, 15])
def taken(
    request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Taken]:
    """One of a slot that is weeks ago, on a server of its own: no other test's databases are in it."""
    directory = sandbox_directory / f"snapshot-{request.param}"
    directory.mkdir()
    directory.chmod(0o711)
    with PostgresServer(directory / "postgres", major=request.param, durable=False) as server:
        installation = Installation.make(
            directory,
            postgres=server,
            primary=s3_primary,
            replica=s3_replica,
            suffix=f"-snapshot-{request.param}",
            scale=0.05,
        )
        yield Taken(installation, take(installation, directory, SUNDAY, SLOT), directory)


@pytest.mark.requirement("R1.3", "R2.1", "R2.2", "R2.3")
def test_its_manifest_says_where_the_base_and_the_log_begin_and_end(taken: Taken) -> None:
    manifest, before = taken.manifest, taken.installation.synapse.fingerprint()
    found, wal = manifest.base, manifest.wal
    assert found is not None
    assert wal is not None

    assert (manifest.type, manifest.slot) == ("snapshot", SLOT)
    assert wal.start_lsn == segment_start(found.start_lsn, wal.segment_bytes)
    assert found.start_lsn < found.stop_lsn < Lsn.parse(manifest.consistency_point.lsn) <= wal.end_lsn
    assert found.started < found.stopped < manifest.consistency_point.time
    assert wal.since == found.started
    assert len(wal.files) * wal.segment_bytes == wal.end_lsn - wal.start_lsn == wal.raw_bytes
    assert found.tablespaces == ()
    assert 0 < found.database_bytes < manifest.artifact(BASE).raw_bytes
    assert manifest.database.rows == sum(table["rows"] for table in taken.json(INVENTORY)["tables"].values())
    assert manifest.objects.objects == len(before.objects)
    assert manifest.consistency_point.configuration_commit == before.configuration["HEAD"]
    assert manifest.configuration.refs_sha256
    assert {artifact.name.partition("/")[0] for artifact in manifest.artifacts} == {"database", "objects", "config"}
    assert not [artifact.name for artifact in manifest.artifacts if artifact.name.endswith(".pgdump")]


def test_it_says_how_late_it_is(taken: Taken) -> None:
    [late] = [warning for warning in taken.manifest.warnings if "after its slot ended" in warning]

    assert late.startswith(f"{SUNDAY} was taken ")


@pytest.mark.requirement("R2.3")
def test_it_knows_what_the_servers_own_files_say(taken: Taken) -> None:
    files = taken.json(SERVER_FILES)

    assert {"name": "hba_file", "path": str(taken.installation.postgres.data / "pg_hba.conf")} in files["places"]
    assert {"wal_level": "replica"}.items() <= {line["name"]: line["setting"] for line in files["settings"]}.items()
    assert "scram-sha-256" in {line["auth_method"] for line in files["hba"]}
    assert files["ident"] == []
    assert taken.json(SETTINGS)["database"]["name"] == taken.installation.dump.dbname


@pytest.mark.requirement("R1.3", "R4.5")
def test_the_table_of_files_is_the_tars(taken: Taken) -> None:
    table = [json.loads(line) for line in b"".join(taken.opened().read(BASE_FILES)).splitlines()]
    with tarfile.open(fileobj=io.BytesIO(b"".join(taken.opened().read(BASE)))) as tar:
        members = [
            (member.name.rstrip("/"), member.size, member.mode, member.mtime, member.offset_data) for member in tar
        ]

    assert [(line["name"], line["size"], line["mode"], line["mtime"], line["offset"]) for line in table] == members
    assert {line["tar"] for line in table} == {BASE}
    assert members[-1][0] == "backup_manifest"


@pytest.mark.requirement("R4.5")
def test_its_base_passes_pg_verifybackup(taken: Taken) -> None:
    verify(taken, taken.manifest, taken.scratch / "unpacked")


def verify(taken: Taken, manifest: Manifest, directory: Path) -> None:
    """Unpack the tars as anybody could, and let PostgreSQL's own program compare every file with its manifest."""
    opened = taken.opened(manifest)
    tars = {BASE: directory}
    assert manifest.base is not None
    for tablespace in manifest.base.tablespaces:
        tars[tablespace_tar(tablespace.oid)] = directory / "pg_tblspc" / str(tablespace.oid)
    for name, place in tars.items():
        with tarfile.open(fileobj=io.BytesIO(b"".join(opened.read(name)))) as tar:
            tar.extractall(place, filter="fully_trusted")
    tools = find_tools(taken.installation.postgres.major)
    subprocess.run(
        [tools.pg_verifybackup, "--no-parse-wal", "--quiet", str(directory)], check=True, capture_output=True
    )


@pytest.mark.requirement("R4.5")
def test_all_of_it_is_read_back_its_log_too(taken: Taken) -> None:
    assert taken.manifest.wal is not None
    catalog = taken.installation.catalog()

    integrity = check_integrity(catalog, SUNDAY, POLICY, scratch=taken.scratch)
    assert integrity["segments"] == len(taken.manifest.wal.files)
    assert integrity["raw_bytes"] >= taken.manifest.raw_bytes
    assert check_sizes(catalog, SUNDAY, POLICY, scratch=taken.scratch)["rows"] == taken.manifest.database.rows


@pytest.mark.requirement("R4.5")
def test_a_segment_that_is_gone_is_named(taken: Taken) -> None:
    catalog, wal = taken.installation.catalog(), taken.manifest.wal
    assert wal is not None
    archive = WalArchive(
        catalog.bucket, catalog.keyring, taken.manifest.database.system_identifier, policy=POLICY.pipeline
    )
    key = archive.key_of(wal.files[-1])
    content = catalog.bucket.read(key)
    catalog.bucket.delete_version(key, next(catalog.bucket.versions(key)).version_id)
    try:
        with pytest.raises(StreamRefused, match=wal.files[-1].name):
            check_integrity(catalog, SUNDAY, POLICY, scratch=taken.scratch)
    finally:
        catalog.bucket.put(key, content)


@pytest.mark.requirement("R1.3", "R4.5")
def test_it_starts_and_every_table_is_what_it_was(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, manifest = taken.installation.catalog(), taken.manifest
    facts = prove_start(catalog, manifest, POLICY, scratch=taken.scratch)

    assert (facts["tables"], facts["rows"]) == (manifest.database.tables, manifest.database.rows)
    assert facts["reached"] == manifest.consistency_point.lsn
    assert facts["amcheck"] == "sound"
    assert not list(taken.scratch.glob("start-*"))

    whole = Inventory.from_json(taken.json(INVENTORY))
    users = replace(whole.tables["public.users"], digest="1 2")
    other = replace(whole, tables={**whole.tables, "public.users": users})
    with monkeypatch.context() as patch:
        patch.setattr(start.Inventory, "from_json", lambda _: other)
        with pytest.raises(RestoreDiffers, match=r"public\.users"):
            prove_start(catalog, manifest, POLICY, scratch=taken.scratch)
    assert [record.subject for record in catalog.verification(manifest).failed] == ["cluster"]

    with monkeypatch.context() as patch:
        patch.setattr(room, "free_bytes", lambda _: 10**6)
        with pytest.raises(NoRoom, match="1 MB free"):
            prove_start(catalog, manifest, POLICY, scratch=taken.scratch)
    assert len(catalog.history(manifest, "sample")) == 2  # a small disk is no verdict

    assert prove_start(catalog, manifest, POLICY, scratch=taken.scratch)["record"]
    assert catalog.verification(manifest).failed == ()


def test_the_command_line_starts_it_too(taken: Taken) -> None:
    installation = taken.installation
    program = ["-m", "include.cli", "--bucket", installation.backups, "verify", str(SUNDAY)]
    done = subprocess.run(
        [sys.executable, *program, "--sample", "cluster"],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **installation.break_glass()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"It was started, and its {taken.manifest.database.tables} tables are equal." in done.stdout


def test_the_same_id_again_is_the_committed_one(taken: Taken) -> None:
    bucket = taken.installation.catalog().bucket
    before = sorted(bucket.keys(""))

    assert taken.take(SUNDAY, SLOT) == taken.manifest
    assert sorted(bucket.keys("")) == before


@pytest.mark.requirement("R5.5")
def test_a_slot_that_is_past_is_adopted_by_the_snapshot_after_it(taken: Taken) -> None:
    bucket = taken.installation.catalog().bucket
    before = sorted(bucket.keys(""))
    missed = Slot(start=SLOT.end - 2 * WEEK, end=SLOT.end - WEEK)
    with pytest.raises(Adopted, match=str(SUNDAY)) as adopted:
        taken.take(BackupId("snapshot", missed.end), missed)

    assert adopted.value.by == taken.manifest
    assert sorted(bucket.keys("")) == before


@pytest.mark.requirement("R4.4")
def test_one_whose_copy_is_killed_commits_nothing_and_runs_again(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    backup, living = BackupId("snapshot", SLOT.end + WEEK), []

    @contextmanager
    def killed(*args: Any, **options: Any) -> Iterator[Iterator[bytes]]:
        with run_source(*args, **options) as chunks:

            def fatal() -> Iterator[bytes]:
                yield next(chunks)
                living.extend(session.backup for session in run_sessions(taken.installation.dump))
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):  # a server's own, that has just ended
                        if child.name() == "pg_basebackup":
                            child.kill()
                yield from chunks

            yield fatal()

    with monkeypatch.context() as patch:
        patch.setattr(base, "run_source", killed)
        with pytest.raises(SourceFailed, match="pg_basebackup failed"):
            taken.take(backup)
    assert living == [str(backup)]  # by which the reaper knows that it lives
    assert taken.installation.catalog().find(backup) is None

    assert taken.take(backup).backup == backup
    assert taken.ask(SLOTS) == [ANCHOR]


# What the operator does, in a process of its own that kills itself where it is told to.
TASK = """
import json, os, signal, sys
from importlib import import_module
from pathlib import Path
import boto3
from include.backup.application import Application
from include.backup.snapshot import make_snapshot
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

told = json.load(sys.stdin)
def bucket(name):
    session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
    return Bucket(session, name, region=told["region"], endpoint_url=told["endpoint_url"])
module, place, method = told["dies"]
setattr(getattr(import_module(module), place), method, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
make_snapshot(
    BackupId.parse(told["backup"]), slot=None, policy=load_policy(), scratch=Path(told["scratch"]),
    application=Application(
        **{name: DatabaseLogin(**login) for name, login in told["logins"].items()},
        objects=bucket(told["objects"]), configuration=Configuration(Path(told["configuration"])),
    ),
    catalog=Catalog(bucket(told["backups"]), Keyring.load(Path(told["keyring"]))),
)
"""


@pytest.mark.requirement("R4.4")
@pytest.mark.parametrize("place", [TarScanner, WalSession, Catalog], ids=["base", "log", "commit"])
def test_a_try_that_is_killed_commits_nothing_and_the_next_one_clears_up(taken: Taken, place: type) -> None:
    method = {TarScanner: "feed", WalSession: "ship", Catalog: "commit"}[place]
    backup, installation = BackupId("snapshot", datetime.now(UTC), manual=True), taken.installation
    credentials = installation.primary.session().get_credentials()
    assert credentials is not None
    told = {
        "logins": {name: asdict(getattr(installation, name)) for name in ("barrier", "dump", "replication")},
        "objects": installation.synapse.bucket,
        "backups": installation.backups,
        "access_key": credentials.access_key,
        "secret_key": credentials.secret_key,
        "region": installation.primary.region,
        "endpoint_url": installation.primary.endpoint_url,
        "configuration": str(installation.synapse.configuration),
        "keyring": str(installation.keyring),
        "scratch": str(taken.scratch),
        "backup": str(backup),
        "dies": [place.__module__, place.__name__, method],
    }
    done = subprocess.run(
        [sys.executable, "-c", TASK],
        input=json.dumps(told),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert taken.installation.catalog().find(backup) is None

    made = taken.take(backup)
    assert made == taken.installation.catalog().get(backup)
    assert taken.ask(SLOTS) == [ANCHOR]


def test_one_that_fails_behind_the_point_leaves_no_session_and_no_slot(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = BackupId("snapshot", SLOT.end + 2 * WEEK)
    finish = snapshot.collect_wal

    def fail(*args: Any, **options: Any) -> None:
        finish(*args, **options)
        raise ZeroDivisionError

    monkeypatch.setattr(snapshot, "collect_wal", fail)
    with pytest.raises(ZeroDivisionError):
        taken.take(backup)

    assert taken.installation.catalog().find(backup) is None
    assert taken.ask(OTHERS) == []
    assert taken.ask(SLOTS) == [ANCHOR]


@pytest.mark.requirement("R1.2", "R5.5")
def test_log_that_the_server_gave_up_is_told_and_kept_again(taken: Taken) -> None:
    def keep(size: str) -> None:
        with taken.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            session.execute(f"ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'".encode())
            session.execute("SELECT pg_reload_conf()")

    states = "SELECT wal_status FROM pg_replication_slots"
    taken.take(BackupId("snapshot", datetime.now(UTC), manual=True))
    keep("16MB")
    for _ in range(50):  # whoever makes checkpoints hears of the new size when it does
        taken.ask("SELECT txid_current(), pg_switch_wal()")
        with taken.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
            session.execute("CHECKPOINT")
        if taken.ask(states) == ["lost"]:
            break
    assert taken.ask(states) == ["lost"]
    keep("-1")
    manifest = taken.take(BackupId("snapshot", datetime.now(UTC), manual=True))

    assert [warning for warning in manifest.warnings if warning.startswith("The server had given up log")]
    assert taken.ask(states) == ["reserved"]


@pytest.fixture
def tablespace(taken: Taken) -> Iterator[str]:
    """A tablespace with a table in it."""
    server = taken.installation.postgres
    place = server.directory / "tablespace"
    place.mkdir()
    if account := server._account:
        os.chown(place, *account)
    login = taken.installation.synapse.database
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(f"CREATE TABLESPACE apart LOCATION '{place}'".encode())
        session.execute(
            "CREATE TABLE public.apart TABLESPACE apart"
            " AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 9999) AS n"
        )
        session.execute("CREATE UNLOGGED TABLE public.fleeting AS SELECT 1 AS n")
        yield "apart"
        session.execute("DROP TABLE public.fleeting")
        session.execute("DROP TABLE public.apart")
        session.execute("DROP TABLESPACE apart")
    place.rmdir()


@pytest.mark.requirement("R1.3", "R4.5")
def test_a_cluster_with_a_tablespace_goes_through_the_disk(
    taken: Taken, tablespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = BackupId("snapshot", SLOT.end + 3 * WEEK)
    with monkeypatch.context() as patch:
        patch.setattr(base, "free_bytes", lambda _: 10**6)
        with pytest.raises(BackupError, match=r"has 0.0 GB free; the cluster takes"):
            taken.take(backup)
    manifest = taken.take(backup)

    assert manifest.base is not None
    [apart] = manifest.base.tablespaces
    assert apart.location == str(taken.installation.postgres.directory / "tablespace")
    assert manifest.artifact(tablespace_tar(apart.oid)).raw_bytes > 5 * 10**6
    lines = [json.loads(line) for line in b"".join(taken.opened(manifest).read(BASE_FILES)).splitlines()]
    assert {line["tar"] for line in lines} == {BASE, tablespace_tar(apart.oid)}
    assert "tablespace_map" in {line["name"] for line in lines}  # in place of links
    verify(taken, manifest, taken.scratch / "unpacked-apart")
    facts = prove_start(taken.installation.catalog(), manifest, POLICY, scratch=taken.scratch)
    assert facts["rows"] == manifest.database.rows - 1  # what is unlogged is in no base
    assert [warning for warning in manifest.warnings if warning.startswith("1 unlogged tables come back empty")]
    assert not list(taken.scratch.glob("base-*"))
