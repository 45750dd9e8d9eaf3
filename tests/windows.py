"""A chain of windows on a real server, in two regions, for the tests of increments and of the replica."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from include.backup.increment import make_increment
from include.backup.replicate import replicate
from include.backup.wal_collection import collect_wal, read_log
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, new_attempt
from include.repository.ledger import Gap, read_gaps
from include.repository.lsn import Lsn, is_segment, segment_start
from include.repository.manifest import BaseBackup, Manifest, Slot, WalWindow
from include.repository.wal import WalArchive
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.slots import ANCHOR, secure_anchor
from tests import manifests

ROOT = Path(__file__).parents[1]
POLICY = load_policy()

# What the operator does, in a process that can be killed.
TASK = """
import json, sys
from pathlib import Path
import boto3
from include.backup.application import Application
from include.backup.increment import make_increment
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.recovery.opened import OpenedBackup
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
print("BEGINS", flush=True)
make_increment(
    BackupId.parse(told["backup"]), slot=None, application=application, policy=load_policy(),
    scratch=Path(told["scratch"]), catalog=Catalog(bucket(told["backups"]), Keyring.load(Path(told["keyring"]))),
)
print("COMMITTED", flush=True)
"""
HOUR = timedelta(hours=1)


def fresh_bucket(server: S3Server | CephGateway) -> Bucket:
    """An empty, versioned bucket of a name that nobody has."""
    name = server.create_bucket(f"bucket-{secrets.token_hex(8)}")
    return Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)


class Chain:
    """An installation with a chain, and the hours of its schedule."""

    def __init__(self, installation: Installation, catalog: Catalog, scratch: Path, *, replica: Catalog) -> None:
        self.installation, self.catalog, self.replica, self.scratch = installation, catalog, replica, scratch
        self.application = installation.application()
        self.server = installation.postgres
        self._hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

    def on(self, server: PostgresServer) -> Chain:
        """The same, with the connections pointed at another server."""
        other = Chain(self.installation, self.catalog, self.scratch, replica=self.replica)
        other.server = server
        other.application = replace(
            self.application,
            **{
                name: replace(getattr(self.application, name), port=server.port)
                for name in ("barrier", "dump", "replication")
            },
        )
        return other

    def base(self, *, ago: timedelta = timedelta(), system_identifier: str | None = None) -> Manifest:
        """A snapshot in all but its base, which nobody here restores."""
        with self.application.replication.connect(application_name="test", autocommit=True) as session:
            secure_anchor(session)
        self.sql("SELECT pg_logical_emit_message(true, 'test', 'a base writes log')")
        state = read_log(self.application)
        backup = BackupId("snapshot", state.time, manual=True)
        start = segment_start(state.flushed, state.segment_bytes)
        made = manifests.make(
            id=str(backup),
            type="snapshot",
            artifacts=(),
            packs=(),
            base=BaseBackup(start_lsn=state.flushed, stop_lsn=state.flushed, started=state.time, stopped=state.time),
            wal=self.collect(start),
        )
        database = made.database.model_copy(
            update={
                "system_identifier": system_identifier or state.server.system_identifier,
                "timeline": state.server.timeline,
            }
        )
        point = made.consistency_point.model_copy(
            update={
                "time": state.time - ago,
                "lsn": str(made.wal and made.wal.end_lsn),
                "objects_as_of": self.application.objects.clock(),
            }
        )
        return manifests.commit(
            self.catalog, made.model_copy(update={"database": database, "consistency_point": point})
        )

    def collect(self, start: Lsn) -> WalWindow:
        """Ship what there is from `start` on."""
        return collect_wal(
            self.application,
            self.catalog,
            start=start,
            since=datetime.now(UTC),
            attempt=new_attempt(),
            policy=POLICY,
            scratch=self.scratch,
            progress=Progress("log"),
        )

    def increment(
        self, backup: BackupId | None = None, *, slot: Slot | None = None, policy: Policy = POLICY
    ) -> Manifest:
        return make_increment(
            backup or BackupId("incremental", datetime.now(UTC), manual=True),
            slot=slot,
            application=self.application,
            catalog=self.catalog,
            policy=policy,
            scratch=self.scratch,
        )

    def replicate(self, made: Manifest) -> dict[str, Any]:
        """Make a backup, and all before it, durable in the second region, as the run that made it does."""
        return replicate(
            made.backup,
            application=self.application,
            primary=self.catalog,
            replica=self.replica,
            policy=POLICY,
        )

    def slot_at(self) -> Lsn:
        """From where on the server keeps its log."""
        [(at,)] = self.sql(f"SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = '{ANCHOR}'")
        return Lsn.parse(str(at))

    def task(self, backup: BackupId, scratch: Path) -> subprocess.Popen[str]:
        """The same in a process of its own, which has begun when this returns."""
        store, objects = self.installation.primary, self.application.objects
        credentials = store.session().get_credentials()
        assert credentials is not None
        told = {
            **{name: asdict(getattr(self.application, name)) for name in ("barrier", "dump", "replication")},
            "objects": objects.name,
            "backups": self.catalog.bucket.name,
            "access_key": credentials.access_key,
            "secret_key": credentials.secret_key,
            "region": store.region,
            "endpoint_url": store.endpoint_url,
            "configuration": str(self.installation.synapse.configuration),
            "keyring": str(self.installation.keyring),
            "backup": str(backup),
            "scratch": str(scratch),
        }
        task = subprocess.Popen(
            [sys.executable, "-c", TASK],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert task.stdin is not None
        assert task.stdout is not None
        task.stdin.write(json.dumps(told))
        task.stdin.close()
        assert task.stdout.readline() == "BEGINS\n"
        return task

    def cli(self, *arguments: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "include.cli", "--bucket", self.catalog.bucket.name, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.installation.break_glass(), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def slot(self, hours: int) -> tuple[BackupId, Slot]:
        """A slot that ends so many hours after the one that the test began in."""
        slot = Slot(start=self._hour + (hours - 1) * HOUR, end=self._hour + hours * HOUR)
        return BackupId("incremental", slot.end), slot

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with self.server.superuser.connect(application_name="test", autocommit=True) as session:
            cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def write(self, segments: int = 1) -> None:
        """So many finished segments of log."""
        for _ in range(segments):
            self.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
            self.sql("SELECT pg_switch_wal()")

    def drop_anchor(self) -> None:
        self.sql(f"SELECT pg_drop_replication_slot('{ANCHOR}')")

    def forget(self) -> None:
        """Let the server remove the log that no slot keeps."""
        oldest = min(name for (name,) in self.sql("SELECT name FROM pg_ls_waldir()") if is_segment(str(name)))
        for _ in range(12):
            self.write(3)
            self.sql("CHECKPOINT")
            if (oldest,) not in self.sql("SELECT name FROM pg_ls_waldir()"):
                return
        raise AssertionError(f"the server keeps {oldest}")

    def gaps(self) -> tuple[Gap, ...]:
        archive = self.archive()
        return read_gaps(self.catalog.bucket, self.catalog.keyring, archive.system_identifier)

    def caught_up(self, standby: PostgresServer) -> None:
        """Wait until a standby has all the log that there is now."""
        [(there,)] = self.sql("SELECT pg_current_wal_flush_lsn()")
        other = self.on(standby)
        deadline = time.monotonic() + 30
        while other.sql(f"SELECT pg_last_wal_receive_lsn() >= '{there}' AND pg_last_wal_replay_lsn() >= '{there}'") != [
            (True,)
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def slots(self) -> set[object]:
        return {name for (name,) in self.sql("SELECT slot_name FROM pg_replication_slots")}

    def archive(self) -> WalArchive:
        system = read_log(self.application).server.system_identifier
        return WalArchive(self.catalog.bucket, self.catalog.keyring, system, policy=POLICY.pipeline)

    def whole(self, *windows: Manifest) -> None:
        """Each window continues the one before it, and every file of it reads back."""
        archive = self.archive()
        for before, window in pairwise(windows):
            assert before.wal is not None
            assert window.wal is not None
            assert window.wal.start_lsn == before.wal.end_lsn
            assert window.wal.since == before.consistency_point.time
        for window in windows:
            assert window.wal is not None
            segments = [file for file in window.wal.files if not file.name.endswith(".history")]
            assert len(segments) * window.wal.segment_bytes == window.wal.end_lsn - window.wal.start_lsn
            for file in window.wal.files:
                assert sum(map(len, archive.read(file))) == file.raw_bytes
            assert window.wal.start_lsn < Lsn.parse(window.consistency_point.lsn) <= window.wal.end_lsn
        assert self.slots() <= {ANCHOR}
        assert list(self.scratch.iterdir()) == []
