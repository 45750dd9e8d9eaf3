"""Any moment between the backups: exactly the rows that were committed by then, and the objects and files of then."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from include.backup.increment import make_increment
from include.backup.snapshot import make_snapshot
from include.errors import BackupError
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket, ObjectVersion
from include.policy import load_policy
from include.recovery.cluster.recover import recover
from include.recovery.database import DatabaseExists
from include.recovery.moments.places import Places
from include.recovery.moments.planning import RecoveryPlan, Target, Unreachable, plan_recovery, reopen
from include.recovery.moments.proof import prove_plan
from include.recovery.moments.restore import Chosen, Destinations, RestoredMoment, restore_to
from include.recovery.moments.steps import NotAsRestored, look_at
from include.recovery.moments.steps import restore_to as restore_to_places
from include.recovery.opened import OpenedBackup
from include.recovery.selection import NothingMatches
from include.recovery.validation.application import check_application_state
from include.recovery.validation.consistency import check_data_consistency
from include.recovery.validation.recovered import EXPECTED, Expected, Recovered
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, wal_key
from include.repository.lsn import Lsn, segment_name
from include.repository.manifest import Manifest, WalFile
from include.repository.wal import WalArchive, WalSession
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.standby import Standby
from include.sources.objects import objects_as_of
from tests.damage import flip, repair

POLICY = load_policy()
SCALE = 0.02
WRITTEN = "SELECT n, pg_xact_commit_timestamp(xmin) FROM public.entry ORDER BY n"


class Writer:
    """Commits numbered rows, one a transaction, until told to stop; a server that is away is waited for."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._server, self._database = server, database
        self._stopped, self._number = threading.Event(), 0
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._grown = threading.Condition()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def go_on(self, rows: int) -> None:
        """Wait until so many more rows were committed."""
        with self._grown:
            until = self._number + rows
            assert self._grown.wait_for(lambda: self._number >= until, timeout=60)

    def _write(self) -> None:
        while not self._stopped.is_set():
            try:
                login = self._server.superuser.with_database(self._database)
                with login.connect(application_name="writer", autocommit=True) as session:
                    (last,) = session.execute("SELECT coalesce(max(n), 0) FROM public.entry").fetchone() or (0,)
                    while not self._stopped.wait(0.005):
                        last += 1
                        session.execute("INSERT INTO public.entry VALUES (%s, repeat('x', 500))", (last,))
                        with self._grown:
                            self._number += 1
                            self._grown.notify_all()
            except Exception:
                continue


@dataclass
class Story:
    """One installation through snapshot, increments and crashes, and what was true when."""

    installation: Installation
    scratch: Path
    made: list[Manifest] = field(default_factory=list)
    rows: dict[int, datetime] = field(default_factory=dict)
    broken_off: datetime | None = None
    """When the server had crashed in the middle of an increment."""

    @property
    def catalog(self) -> Catalog:
        return self.installation.catalog()

    @property
    def files(self) -> Bucket:
        return self.installation.application().objects

    def back_up(self, type_: str) -> None:
        backup = BackupId(type_, datetime.now(UTC), manual=True)  # type: ignore[arg-type]
        make = make_snapshot if type_ == "snapshot" else make_increment
        self.made.append(
            make(
                backup,
                slot=None,
                application=self.installation.application(),
                catalog=self.catalog,
                policy=POLICY,
                scratch=self.scratch,
            )
        )

    def break_off(self) -> None:
        """Begin an increment, in the middle of which the server crashes and comes again."""
        server, ship, crashes = self.installation.postgres, WalSession.ship, []

        def crash(session: WalSession, file: Path, name: str) -> WalFile:
            shipped = ship(session, file, name)
            if not crashes:
                crashes.append(name)
                server.stop_at_once()
                self.broken_off = datetime.now(UTC)
                server.start()
            return shipped

        with pytest.MonkeyPatch.context() as patch, pytest.raises(BackupError, match="ended"):
            patch.setattr(WalSession, "ship", crash)
            self.back_up("incremental")

    def change(self, number: int) -> None:
        """Objects made, replaced and deleted, one that the database names from then on, and a commit."""
        files = self.files
        for key in (f"uploads/moment-{number}", "uploads/replaced"):
            files.client.put_object(Bucket=files.name, Key=key, Body=f"of {number}".encode())
        if number:
            files.client.delete_object(Bucket=files.name, Key=f"uploads/moment-{number - 1}")
        checkout = self.installation.synapse.configuration
        (checkout / "moment.txt").write_text(f"of {number}\n")
        for arguments in (["add", "moment.txt"], ["commit", "-q", "-m", f"moment {number}"]):
            subprocess.run(["git", "-C", str(checkout), *arguments], check=True, capture_output=True)

    def plan(self, target: str | datetime) -> RecoveryPlan:
        text = target if isinstance(target, str) else target.isoformat()
        return plan_recovery(self.catalog, Target.parse(text), POLICY, scratch=self.scratch)

    def restore(self, plan: RecoveryPlan, to: Destinations, chosen: Chosen = Chosen()) -> RestoredMoment:  # noqa: B008
        with Progress("a test", scratch=self.scratch) as progress:
            return restore_to(plan, self.catalog, POLICY, to, scratch=self.scratch, progress=progress, chosen=chosen)

    def committed_by(self, moment: datetime) -> list[int]:
        return [number for number, when in self.rows.items() if when <= moment]


@pytest.fixture(scope="module", params=[18, pytest.param(15, marks=pytest.mark.soak)])
def story(
    request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Story]:
    """A snapshot and three increments, two crashes of the server between and one within, one writer all through."""
    major: int = request.param
    directory = sandbox_directory / f"moments-{major}"
    directory.mkdir()
    directory.chmod(0o711)
    scratch = directory / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    settings = {"track_commit_timestamp": "on"}
    with PostgresServer(directory / "server", major=major, durable=False, settings=settings) as server:
        installation = Installation.make(
            directory, postgres=server, primary=s3_primary, replica=s3_replica, suffix=f"-moments-{major}", scale=SCALE
        )
        name = installation.synapse.database.dbname
        with installation.synapse.database.connect(application_name="test", autocommit=True) as session:
            session.execute("CREATE TABLE public.entry (n int PRIMARY KEY, body text)")
        told = Story(installation, scratch)
        with Writer(server, name) as writer:
            told.change(0)
            writer.go_on(20)
            told.back_up("snapshot")
            for number in (1, 2):
                writer.go_on(30)
                told.change(number)
                installation.settle()
                server.crash()
                server.start()
                writer.go_on(30)
                told.back_up("incremental")
            writer.go_on(30)
            told.change(3)
            installation.settle()
            writer.go_on(30)
            told.break_off()
            writer.go_on(30)
            told.back_up("incremental")
        with installation.synapse.database.connect(application_name="test") as session:
            told.rows = dict(session.execute(WRITTEN).fetchall())
        yield told
        installation.synapse.destroy()


@pytest.fixture
def database(story: Story) -> Iterator[str]:
    """A name for a database on the server, dropped at the end."""
    name = f"moment_{secrets.token_hex(4)}"
    yield name
    with story.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


def rows_of(story: Story, database: str) -> list[int]:
    login = story.installation.postgres.superuser.with_database(database)
    with login.connect(application_name="test") as session:
        return [n for (n,) in session.execute("SELECT n FROM public.entry ORDER BY n")]


def moments(story: Story, count: int, seed: int) -> list[datetime]:
    """Anywhere between the end of the base and the last backup, and exactly when a row was committed."""
    draw = random.Random(seed)
    base = story.made[0].base
    assert base is not None
    first, last = base.stopped, story.made[-1].consistency_point.time
    within = [when for when in story.rows.values() if first <= when <= last]
    return [draw.choice(within) if number % 2 else first + (last - first) * draw.random() for number in range(count)]


def content_of(version: ObjectVersion) -> object:
    """An ETag of what was uploaded in parts does not come back."""
    return version.size if "-" in version.etag else version.etag


def objects_then(story: Story, plan: RecoveryPlan) -> dict[str, object]:
    assert plan.objects is not None
    versions = story.files.versions("")
    return {version.key: content_of(version) for version in objects_as_of(versions, plan.objects.as_of)}


@pytest.mark.requirement("R1.2", "R5.1", "R5.2")
def test_a_moment_between_two_backups_has_what_was_committed_by_then(
    story: Story, database: str, bucket: str, s3_primary: S3Server, tmp_path: Path
) -> None:
    moment = story.made[1].consistency_point.time + timedelta(seconds=0.7)
    plan = story.plan(moment)
    assert plan.base == story.made[0]
    into = Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    server = story.installation.postgres.superuser
    to = Destinations(server=server, database=database, objects=into, configuration=tmp_path / "checkout")
    restored = story.restore(plan, to)
    assert rows_of(story, database) == story.committed_by(moment)
    assert {version.key: content_of(version) for version in into.versions("")} == objects_then(story, plan)
    assert restored.facts["objects_missing"] == 0
    assert (restored.facts["in_recovery"], restored.facts["accepts_writes"]) == (False, True)
    assert (tmp_path / "checkout" / "moment.txt").read_text() == "of 1\n"
    assert list(story.scratch.iterdir()) == []


@pytest.mark.requirement("R1.2", "R5.1")
def test_a_crash_in_the_middle_of_an_increment_costs_no_row(story: Story) -> None:
    assert story.broken_off is not None
    before, after = (
        near(when for when in story.rows.values() if (when < story.broken_off) == earlier)
        for near, earlier in ((max, True), (min, False))
    )
    for moment in (before, after):
        assert recovered_rows(story, story.plan(moment)) == story.committed_by(moment)


@pytest.mark.requirement("R1.3", "R5.2")
def test_each_consistency_point_is_recovered_by_its_name(story: Story, database: str) -> None:
    snapshot = story.made[0]
    plan = story.plan(snapshot.consistency_point.restore_point)
    restored = story.restore(plan, Destinations(server=story.installation.postgres.superuser, database=database))
    assert restored.facts["compared_with"] == snapshot.id
    assert restored.database is not None
    assert restored.database.rows == snapshot.database.rows
    with pytest.raises(Unreachable, match=r"is in .* yet"):
        story.plan(datetime.now(UTC) + timedelta(hours=1))


def test_one_table_of_a_moment_comes_beside(story: Story, database: str) -> None:
    moment = story.made[-1].consistency_point.time - timedelta(seconds=0.2)
    to = Destinations(server=story.installation.postgres.superuser, database=database)
    restored = story.restore(story.plan(moment), to, Chosen(tables=["public.entry"]))
    assert restored.database is not None
    assert restored.database.tables == 1
    assert rows_of(story, database) == story.committed_by(moment)
    with pytest.raises(DatabaseExists):  # told before anything is recovered
        story.restore(restored.plan, to)
    with pytest.raises(NothingMatches, match="user_dada"):
        story.restore(restored.plan, to, Chosen(components=["user_dada"]))


def recovered_rows(story: Story, plan: RecoveryPlan) -> list[int]:
    """The rows in the recovered cluster itself."""
    catalog, directory = story.catalog, story.scratch / f"recovered-{secrets.token_hex(4)}"
    archive = WalArchive(catalog.bucket, catalog.keyring, plan.system_identifier, policy=POLICY.pipeline)
    progress = Progress("a test")
    with (
        recover(
            OpenedBackup(catalog, plan.base, policy=POLICY.pipeline, progress=progress),
            archive,
            wal=plan.wal,
            history=plan.history,
            stop=plan.stop,
            directory=directory,
            policy=POLICY.pipeline,
            progress=progress,
        ) as cluster,
        cluster.login.connect(application_name="test") as session,
    ):
        rows = [n for (n,) in session.execute("SELECT n FROM public.entry ORDER BY n")]
    directory.rmdir()
    return rows


def try_moments(story: Story, count: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    for number, moment in enumerate(moments(story, count, seed)):
        plan = story.plan(moment)
        told = f"seed {seed}, number {number}: {moment.isoformat()}, {plan.stop}"
        assert plan.reaches <= moment, told
        assert recovered_rows(story, plan) == story.committed_by(moment), told
        print(told)


def test_random_moments_have_exactly_the_rows_of_then(story: Story) -> None:
    try_moments(story, 3)


@pytest.mark.soak
def test_fifty_random_moments_have_exactly_the_rows_of_then(story: Story) -> None:
    try_moments(story, 50)


@pytest.mark.requirement("R5.1", "R5.2")
def test_a_recovery_in_steps_is_proved_carried_out_and_looked_at(
    story: Story, database: str, bucket: str, s3_primary: S3Server, tmp_path: Path
) -> None:
    """As the DAG does it: a scratch place, a login that may create databases and nothing else."""
    planned = story.plan(story.made[2].consistency_point.time - timedelta(seconds=0.3))
    plan = reopen(json.loads(json.dumps(planned.to_json())), story.catalog, POLICY)
    proved = prove_plan(plan, story.catalog, POLICY, scratch=story.scratch)
    assert proved["wal_files_read_back"] == len(plan.wal)
    into = Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    places = Places(
        server=story.installation.scratch,
        database=database,
        bucket=into,
        prefix="recovered/",
        configuration=tmp_path / "checkout",
        components=(),
        live=False,
        run="run",
    )
    scratch = story.scratch / "steps"
    facts = restore_to_places(plan, story.catalog, POLICY, places=places, scratch=scratch)
    json.dumps(facts)
    assert [file.name for file in scratch.iterdir()] == [EXPECTED]
    recovered = Recovered(
        Expected.read(scratch / EXPECTED),
        story.installation.scratch.with_database(database),
        into,
        places.prefix,
        places.configuration,
    )
    for check in (check_data_consistency, check_application_state):
        validation = check(recovered, POLICY)
        assert list(map(str, validation.failed)) == []
        assert len(validation.checks) > 3
    shutil.rmtree(scratch)
    assert rows_of(story, database) == story.committed_by(plan.target.moment or plan.reaches)
    told = look_at(places, facts)
    assert (told["tables"], told["objects"]) == (facts["restored_tables"], facts["objects"])
    into.delete(next(into.keys("recovered/")))
    with pytest.raises(NotAsRestored, match="objects, not"):
        look_at(places, facts)


def test_a_flipped_bit_in_a_segment_stops_the_proof_and_the_recovery(story: Story, database: str) -> None:
    plan = story.plan(story.made[1].consistency_point.time - timedelta(seconds=0.1))
    assert plan.stop.lsn is not None
    name = segment_name(plan.history.timeline, Lsn(plan.stop.lsn - 1), plan.segment_bytes)
    (file,) = (file for file in plan.wal if file.name == name)
    key = wal_key(plan.system_identifier, file.name, file.attempt)
    flip(story.catalog.bucket, key)
    try:
        with pytest.raises(StreamRefused, match=name):
            prove_plan(plan, story.catalog, POLICY, scratch=story.scratch)
        to = Destinations(server=story.installation.postgres.superuser, database=database)
        with pytest.raises(BackupError, match=name):
            story.restore(plan, to)
    finally:
        repair(story.catalog.bucket, key)
    with story.installation.postgres.superuser.connect(application_name="test") as session:
        assert session.execute("SELECT FROM pg_database WHERE datname = %s", (database,)).fetchone() is None


def cli(story: Story, *arguments: str) -> subprocess.CompletedProcess[str]:
    installation = story.installation
    return subprocess.run(
        [sys.executable, "-m", "include.cli", "--bucket", installation.backups, *arguments],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **installation.break_glass()},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_plans_tells_and_recovers(story: Story, database: str, sandbox_directory: Path) -> None:
    moment = story.made[0].consistency_point.time + timedelta(seconds=0.4)
    planned = cli(story, "restore", "--to", moment.isoformat(), "--plan")
    assert planned.returncode == 0, planned.stderr
    assert f"base           {story.made[0].id}" in planned.stdout
    kept = sandbox_directory / f"kept-{story.installation.postgres.major}"
    done = cli(story, "restore", "--to", moment.isoformat(), "--database", database, f"--data-directory={kept}")
    assert done.returncode == 0, done.stderr
    assert f"target         {moment.isoformat()}" in done.stderr
    assert f"database {database}:" in done.stdout
    assert rows_of(story, database) == story.committed_by(moment)
    assert (kept / "data" / "PG_VERSION").read_text() == f"{story.installation.postgres.major}\n"


def on(installation: Installation, server: PostgresServer) -> Installation:
    """The same installation, whose database is now on another server."""
    moved = {
        name: replace(getattr(installation, name), port=server.port)
        for name in ("barrier", "dump", "replication", "scratch")
    }
    return replace(installation, postgres=server, **moved)


@pytest.mark.requirement("R1.2", "R5.1")
def test_a_failover_is_followed(story: Story, sandbox_directory: Path) -> None:
    """The last test of the story: its server goes, and the log goes on elsewhere, on another timeline."""
    primary, name = story.installation.postgres, story.installation.synapse.database.dbname
    database = f"moment_{secrets.token_hex(4)}"
    with Standby(primary.directory / "standby", primary) as standby:
        after = Story(story.installation, story.scratch, list(story.made))
        after.back_up("incremental")  # what was written before there was a standby, that has not
        with primary.superuser.connect(application_name="test", autocommit=True) as session:
            (position,) = session.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        with standby.superuser.connect(application_name="test", autocommit=True) as session:
            while session.execute("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", (position,)).fetchone() == (True,):
                assert standby.running
        primary.crash()
        try:
            standby.promote()
            after.installation = on(story.installation, standby)
            with Writer(standby, name) as writer:
                for _ in range(2):
                    writer.go_on(30)
                    after.back_up("incremental")
            with standby.superuser.with_database(name).connect(application_name="test") as session:
                after.rows = dict(session.execute(WRITTEN).fetchall())
            before, first, second = (one.consistency_point.time for one in after.made[-3:])
            for moment in (before - timedelta(seconds=0.2), first - timedelta(seconds=0.2), second):
                plan = after.plan(moment)
                assert plan.history.timeline == 2
                after.restore(
                    plan, Destinations(server=standby.superuser, database=database), Chosen(tables=["public.entry"])
                )
                assert rows_of(after, database) == after.committed_by(moment)
                with standby.superuser.connect(application_name="test", autocommit=True) as session:
                    session.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())
        finally:
            primary.start()
