"""SIGKILL at random moments, then run again: one backup that restores, nothing orphaned, no writer kept waiting.

A *moment* is a victim and a share of an undisturbed run's time, both drawn from a seed. What fails is replayed alone by

    BACKUP_KILL_SEED=<seed> pytest -m "" "tests/integration/test_kills.py::test_…[<number>]"
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

import psutil
import psycopg
import pytest

from include.backup.reaper import Leftovers, Reaper, remove
from include.backup.verify import check_integrity
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.database import restore_database
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, envelope_prefix, pack_key
from include.repository.manifest import Manifest
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.login import DatabaseLogin

ROOT = Path(__file__).parents[2]
POLICY = load_policy()
SCALE = 0.05
ENDS_WITHIN = 150.0
BOUND = (POLICY.barrier.statement_timeout + POLICY.barrier.idle_timeout).total_seconds()
"""The longest that a writer may wait: for the barrier to have all its locks, or to give up (`lock_timeout` is of each
table, `statement_timeout` of them all), and then for the server to end one that says nothing."""

VICTIMS = ("task", "supervisor", "pg_dump", "database server", "object store")
SEED = int(os.environ.get("BACKUP_KILL_SEED") or secrets.randbelow(10**6))
FEW_SEED = int(os.environ.get("BACKUP_KILL_SEED") or 3)

# What the operator does, in a process of its own; a supervisor starts it, as Airflow's does.
TASK = """
import json, sys
from pathlib import Path
import boto3
from include.backup.application import Application
from include.backup.full import make_full_backup
from include.backup.prepare import make_scratch
from include.backup.scratch import hold
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
application = Application(
    barrier=DatabaseLogin(**told["barrier"]), dump=DatabaseLogin(**told["dump"]),
    replication=DatabaseLogin(**told["replication"]),
    objects=bucket(told["objects"]), configuration=Configuration(Path(told["configuration"])),
)
scratch = make_scratch(Path(told["scratch"]), told["backup"])
hold(scratch)
print("BEGINS", flush=True)
made = make_full_backup(
    BackupId.parse(told["backup"]), slot=None, application=application, policy=load_policy(), scratch=scratch,
    catalog=Catalog(bucket(told["backups"]), Keyring.load(Path(told["keyring"]))),
)
print("COMMITTED", made.attempt, flush=True)
"""
SUPERVISOR = """
import subprocess, sys
task = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print("TASK", task.pid, flush=True)
sys.exit(task.wait())
"""


class Run:
    """One run: a supervisor and its task. Its words and errors are in `words` when it has ended."""

    def __init__(self, told: dict[str, object]) -> None:
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, TASK],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.supervisor.stdin is not None
        assert self.supervisor.stdout is not None
        self.supervisor.stdin.write(json.dumps(told))
        self.supervisor.stdin.close()
        self.words: list[str] = []
        self._begun, self.committed = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.supervisor.stdout,), daemon=True)
        self._reader.start()
        assert self._begun.wait(ENDS_WITHIN), self.words
        self.task = psutil.Process(int(next(line for line in self.words if line.startswith("TASK")).split()[1]))

    def _read(self, stream: Iterator[str]) -> None:
        for line in stream:
            self.words.append(line.rstrip())
            if line.startswith("BEGINS"):
                self._begun.set()
            if line.startswith("COMMITTED"):
                self.committed.set()
        self._begun.set()

    def ended(self) -> bool:
        """Wait for the task, whoever was killed; returns whether it said that the backup is committed."""
        psutil.wait_procs([self.task], timeout=ENDS_WITHIN)
        assert not alive(self.task), f"it hangs: {self.words}"
        self.supervisor.wait(ENDS_WITHIN)
        self._reader.join(ENDS_WITHIN)  # its pipe ends when the last pg_dump is gone
        assert not self._reader.is_alive(), f"something of it lives on: {self.words}"
        return self.committed.is_set()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; where nobody reaps orphans, the dead stay as zombies."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


class Writer:
    """One who writes all the time. `longest` is the longest that a commit took, in seconds.

    What the server's own death cost is not the backup's: such a write is begun anew.
    """

    def __init__(self, login: DatabaseLogin) -> None:
        self.longest, self.writes = 0.0, 0
        self._login, self._over = login, threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.Error), self._login_or_wait() as session:
                while not self._over.wait(0.005):
                    began = time.monotonic()
                    session.execute(
                        "INSERT INTO public.messages (chat_id, role, body, tokens)"
                        " SELECT min(id), 'user', 'hello', 1 FROM public.chats"
                    )
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.writes += 1

    def _login_or_wait(self) -> psycopg.Connection:
        from include.errors import BackupError  # noqa: PLC0415

        while True:
            try:
                return self._login.connect(application_name="writer", autocommit=True)
            except BackupError as away:
                if self._over.wait(0.05):
                    raise psycopg.OperationalError(str(away)) from away


@dataclass
class Synapse:
    """An installation whose servers may be killed, and somebody who writes to it."""

    installation: Installation
    store: CephGateway
    scratch: Path
    writer: Writer
    made: int = 0

    @cached_property
    def catalog(self) -> Catalog:
        return self.installation.catalog()

    def new_backup(self) -> BackupId:
        self.made += 1
        return BackupId("full", datetime(2026, 11, 22, tzinfo=UTC) + timedelta(days=self.made))

    def run(self, backup: BackupId) -> Run:
        credentials = self.store.session().get_credentials()
        assert credentials is not None
        objects = self.installation.application().objects
        return Run(
            {
                "barrier": asdict(self.installation.barrier),
                "dump": asdict(self.installation.dump),
                "replication": asdict(self.installation.replication),
                "objects": objects.name,
                "backups": self.installation.backups,
                "access_key": credentials.access_key,
                "secret_key": credentials.secret_key,
                "region": self.store.region,
                "endpoint_url": self.store.endpoint_url,
                "configuration": str(self.installation.synapse.configuration),
                "keyring": str(self.installation.keyring),
                "backup": str(backup),
                "scratch": str(self.scratch),
            }
        )

    @cached_property
    def usual(self) -> float:
        """Seconds that an undisturbed run takes, from its beginning to its commit."""
        run = self.run(self.new_backup())
        began = time.monotonic()
        assert run.committed.wait(ENDS_WITHIN), run.words
        took = time.monotonic() - began
        assert run.ended(), run.words
        return took

    def reaper(self) -> Reaper:
        return Reaper(
            self.catalog,
            POLICY,
            source=[self.installation.barrier, self.installation.dump],
            restores=self.installation.scratch,
            root=self.scratch,
        )

    def manifests(self) -> list[Manifest]:
        """Every version of every manifest."""
        bucket = self.catalog.bucket
        return [
            Manifest.open(
                bucket.read(version.key, version_id=version.version_id), self.catalog.keyring, key=version.key
            )
            for version in bucket.versions("manifests/")
        ]


@pytest.fixture(scope="module")
def synapse(sandbox_directory: Path, ceph: CephGateway, s3_replica: S3Server) -> Iterator[Synapse]:
    """On Ceph, whose gateway forgets nothing when it is killed; on a PostgreSQL of its own, for the same end."""
    directory = sandbox_directory / "kills"
    directory.mkdir(mode=0o711)
    with PostgresServer(directory / "postgres", major=18, durable=False) as postgres:
        installation = Installation.make(
            directory, postgres=postgres, primary=ceph, replica=s3_replica, suffix="-kills", scale=SCALE
        )
        scratch = directory / "scratch"
        scratch.mkdir()
        with Writer(installation.synapse.database) as writer:
            yield Synapse(installation, ceph, scratch, writer)


def kill(victim: str, run: Run, synapse: Synapse, draw: random.Random) -> None:
    """SIGKILL; a server is started again at once."""
    if victim == "task":
        with suppress(psutil.NoSuchProcess):
            run.task.kill()
    elif victim == "supervisor":
        run.supervisor.kill()
    elif victim == "pg_dump":
        while alive(run.task):
            with suppress(psutil.NoSuchProcess):
                if dumps := [each for each in run.task.children(recursive=True) if each.name().startswith("pg_dump")]:
                    draw.choice(dumps).kill()
                    return
    else:
        server = synapse.installation.postgres if victim == "database server" else synapse.store
        server.crash()
        server.start()


def survives(synapse: Synapse, seed: int, number: int) -> None:
    draw = random.Random(f"{seed}.{number}")
    victim, share = VICTIMS[number % len(VICTIMS)], draw.random()
    print(f"BACKUP_KILL_SEED={seed}, moment {number}: {victim} at {share:.3f} of a run of {synapse.usual:.2f} s")
    backup = synapse.new_backup()
    first = synapse.run(backup)
    time.sleep(share * synapse.usual)  # the moment itself; nothing is waited for
    print("it was committed already" if first.committed.is_set() else "it was not committed yet")
    kill(victim, first, synapse, draw)
    if victim != "supervisor":  # its task lives on, and both try to commit
        first.ended()
    second = synapse.run(backup)
    assert second.ended(), second.words
    first.ended()

    committed = synapse.catalog.get(backup)
    assert [entry.manifest.id for entry in synapse.catalog.entries() if entry.manifest].count(str(backup)) == 1
    leaves_nothing(synapse, committed)
    restores(synapse, committed)
    print(f"the longest write took {synapse.writer.longest * 1000:.0f} ms, of {synapse.writer.writes}")
    assert synapse.writer.writes > 0
    assert synapse.writer.longest < BOUND


def leaves_nothing(synapse: Synapse, committed: Manifest) -> None:
    """What the reaper finds is what the killed try left; then the bucket holds what the manifests name, and no more."""
    assert [each for each in synapse.reaper().find().findings if each.kind != "session"] == []  # too early
    named, tries = expected(synapse)
    left = {key.split("/")[5] for key in stored(synapse) if key.startswith("full/")} - tries
    uploads = list(synapse.catalog.bucket.unfinished_uploads(""))
    with later(synapse.catalog.bucket):
        found = synapse.reaper().find()
        assert left <= {each.name.split(".")[-1] for each in found.findings if each.kind == "attempt"}
        assert bool(uploads) <= any("attempt" in each.kind for each in found.findings)
        assert {each.name for each in found.findings if each.kind == "temporary directory"} == {
            path.name for path in synapse.scratch.iterdir()
        }
        print(*(f"{each.kind} {each.name}: {each.where}" for each in found.findings), sep="\n")
        assert remove(found.findings) == []
        assert synapse.reaper().find() == Leftovers((), ())
    assert stored(synapse) == named
    assert list(synapse.catalog.bucket.unfinished_uploads("")) == []
    assert [path.name for path in synapse.scratch.iterdir()] == []


def stored(synapse: Synapse) -> set[str]:
    """Every key that has a version or a marker."""
    return {version.key for version in synapse.catalog.bucket.versions("")}


def expected(synapse: Synapse) -> tuple[set[str], set[str]]:
    """What the manifests name, their keys and themselves; and the attempts that they are of."""
    bucket, named, tries = synapse.catalog.bucket, set(), set()
    for manifest in synapse.manifests():
        tries.add(manifest.attempt)
        named.add(manifest.backup.manifest_key)
        named |= set(bucket.keys(envelope_prefix(manifest.id, manifest.attempt)))
        named |= {segment.key for artifact in manifest.artifacts for segment in artifact.segments}
        for pack in manifest.packs:
            named.add(pack_key(pack.id))
            named |= set(bucket.keys(envelope_prefix(pack.id, pack.attempt)))
    return named, tries


def restores(synapse: Synapse, committed: Manifest) -> None:
    """Every byte reads back, and the database comes back equal."""
    check_integrity(synapse.catalog, committed.backup, POLICY, scratch=synapse.scratch)
    server = synapse.installation.postgres.superuser
    with Progress("restore", scratch=synapse.scratch) as progress:
        opened = OpenedBackup(synapse.catalog, committed, policy=POLICY.pipeline, progress=progress)
        restored = restore_database(opened, server=server, name="restored", scratch=synapse.scratch)
    with server.connect(application_name="test", autocommit=True) as session:
        session.execute("DROP DATABASE restored")
    assert restored.rows == committed.database.rows


@contextmanager
def later(bucket: Bucket) -> Iterator[None]:
    """Inside the block the store's clock says that the policy's time has passed."""
    now = POLICY.storage.attempts_reaped_after.after(bucket.clock()) + timedelta(minutes=1)
    bucket.clock = lambda: now  # type: ignore[method-assign]
    try:
        yield
    finally:
        del bucket.clock  # type: ignore[method-assign]


@pytest.mark.requirement("R4.3", "R4.4", "R5.1")
@pytest.mark.parametrize("number", [0, 3])
def test_whoever_is_killed_the_next_run_makes_the_backup(synapse: Synapse, number: int) -> None:
    survives(synapse, FEW_SEED, number)


@pytest.mark.soak
@pytest.mark.requirement("R4.3", "R4.4", "R5.1")
@pytest.mark.parametrize("number", range(50))
def test_fifty_kills(synapse: Synapse, number: int) -> None:
    survives(synapse, SEED, number)
