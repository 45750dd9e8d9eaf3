"""A cluster recovered to one moment: exactly what was committed by then, or an error that says where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from include.backup.scratch import TemporaryDirectory, recovery_directories, remove_directory
from include.backup.start import verify_base
from include.errors import BackupError
from include.pipeline.account import server_account
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket
from include.recovery.cluster import room
from include.recovery.cluster.base import BaseRefused, unpack_base
from include.recovery.cluster.control import Control
from include.recovery.cluster.private_server import PrivateServer
from include.recovery.cluster.recover import RecoveredCluster, RecoveryStopped, replayed
from include.recovery.cluster.room import NoRoom, require_room
from include.recovery.cluster.target import StopAt
from include.recovery.cluster.wal_spool import LogIncomplete, WalSpool
from include.recovery.database import RestoreDiffers
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.contents import BASE, BASE_FILES
from include.repository.envelopes import create_data_key
from include.repository.layout import new_attempt
from include.repository.lsn import Lsn, segment_name, segment_start
from include.repository.manifest import WalFile
from include.repository.timelines import TimelineHistory
from include.repository.wal import WalRefused
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.inventory import Inventory, compare, take_inventory
from include.sources.postgres.relations import list_relations
from include.sources.postgres.tools import tools_of
from tests.damage import flip, repair
from tests.replication import SEGMENT, Cluster
from tests.snapshots import (
    POLICY,
    Chain,
    Ledger,
    Point,
    archive_of,
    reship,
    ship,
    ship_files,
    smuggle,
    store,
    take_base,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def keyring_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keyring.json"


@pytest.fixture(scope="module")
def catalog(s3_primary: S3Server, keyring_path: Path) -> Catalog:
    name = s3_primary.create_bucket("physical-recovery")
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    return Catalog(store, Keyring.create(keyring_path))


@dataclass(frozen=True)
class Story:
    """What happened to one cluster, and what of it is in the bucket. `single` is where one row's commit begins."""

    chain: Chain
    points: dict[str, Point]
    single: Point
    inventory: Inventory
    major: int

    def stop(self, name: str) -> StopAt:
        return StopAt(name=name, lsn=self.points[name].lsn)

    def with_instead(self, file: WalFile) -> tuple[WalFile, ...]:
        """The plan with another copy of one of its segments."""
        return tuple(file if each.name == file.name else each for each in self.chain.wal)

    def holding(self, lsn: Lsn) -> WalFile:
        """The segment that a place is in."""
        [file] = [each for each in self.chain.wal if each.name == segment_name(1, lsn, SEGMENT)]
        return file


@pytest.fixture(scope="module", params=[18, 15])
def story(request: pytest.FixtureRequest, sandbox_directory: Path, catalog: Catalog) -> Iterator[Story]:
    """Three restore points, a segment apart, after a base; before the third the server is given a larger limit."""
    major: int = request.param
    directory = sandbox_directory / f"physical-{major}"
    settings = {"wal_keep_size": "1GB", "autovacuum": "off"}
    with PostgresServer(directory, major=major, durable=False, settings=settings) as server:
        cluster = Cluster(server)
        ledger = Ledger(cluster)
        ledger.write(100)
        cluster.run("ALTER SYSTEM SET recovery_target_time = '2026-11-22'")  # somebody's, long ago
        manifest = take_base(cluster, catalog, directory, day=major)
        points = {}
        for name in ("first", "second", "third"):
            ledger.write(1000)
            points[name] = ledger.point(name)
            with server.superuser.connect(application_name="test") as session:
                inventory = take_inventory(session, list_relations(session))
            single = Point("", ledger.write_one(), ledger.rows)
            cluster.switch()
            if name == "second":
                cluster.run("ALTER SYSTEM SET max_connections = 137")
                server.restart()
        archive = archive_of(catalog, manifest)
        wal = ship(cluster, archive, manifest.base.start_lsn)
    yield Story(Chain(catalog, archive, manifest, wal, TimelineHistory(1)), points, single, inventory, major)


@pytest.fixture
def place(sandbox_directory: Path, request: pytest.FixtureRequest) -> Path:
    return sandbox_directory / re.sub(r"\W+", "-", request.node.name)


def rows(cluster: RecoveredCluster) -> list[int]:
    with cluster.login.connect(application_name="test") as session:
        return [n for (n,) in session.execute("SELECT n FROM entry ORDER BY n")]


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_recovers_to_a_named_point(story: Story, place: Path, name: str) -> None:
    point = story.points[name]
    with story.chain.recovered(story.stop(name), place) as cluster:
        assert rows(cluster) == list(range(1, point.rows + 1))
        assert (cluster.reached, cluster.timeline, cluster.warnings) == (point.lsn, 2, ())
        with cluster.login.connect(application_name="test") as session:
            session.execute("INSERT INTO entry VALUES (0, 'it takes writes')")
            [(limit,)] = session.execute("SHOW max_connections")
        assert limit == ("137" if name == "third" else "100")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("inclusive", [True, False])
def test_recovers_to_a_place_with_its_record_or_without(story: Story, place: Path, *, inclusive: bool) -> None:
    with story.chain.recovered(StopAt(lsn=story.single.lsn, inclusive=inclusive), place) as cluster:
        assert len(rows(cluster)) == story.single.rows - (not inclusive)


def test_what_was_recovered_has_every_row(story: Story, place: Path) -> None:
    with (
        story.chain.recovered(story.stop("third"), place) as cluster,
        cluster.login.connect(application_name="test") as session,
    ):
        assert compare(story.inventory, take_inventory(session, list_relations(session))) == []


def stops(story: Story, place: Path, expected: type[BackupError], **changes: Any) -> str:
    """Recover to the third point: the error that stops it, once it is proved that nothing was promoted."""
    chain, tools, account = story.chain, tools_of(story.major), server_account()
    place.mkdir()
    place.chmod(0o711)
    data = place / "data"
    unpack_base(chain.opened(), data, policy=POLICY, account=account)
    arguments = {"wal": chain.wal, "stop": story.stop("third"), "history": chain.history, **changes}
    recovery = replayed(
        data,
        chain.archive,
        manifest=chain.manifest,
        tools=tools,
        account=account,
        policy=POLICY,
        progress=Progress("test"),
        **arguments,
    )
    with pytest.raises(expected) as stopped, recovery:
        pass
    assert Control.read(tools, data).state == "in archive recovery"
    assert list((data / "pg_wal").glob("00000002*")) == []
    return str(stopped.value)


def test_stops_at_a_segment_that_is_gone(story: Story, place: Path) -> None:
    copy = reship(story.chain.archive, story.holding(story.points["second"].lsn))
    key = story.chain.archive.key_of(copy)
    bucket = story.chain.catalog.bucket
    for version in list(bucket.versions(key)):
        bucket.client.delete_object(Bucket=bucket.name, Key=key, VersionId=version.version_id)
    assert key in stops(story, place, StreamRefused, wal=story.with_instead(copy))


def test_stops_at_a_segment_in_place_of_another(story: Story, place: Path) -> None:
    archive = story.chain.archive
    copy = reship(archive, story.holding(story.points["second"].lsn))
    other = reship(archive, story.holding(story.points["first"].lsn))
    key = archive.key_of(copy)
    archive.bucket.put(key, archive.bucket.read(archive.key_of(other)))
    assert key in stops(story, place, StreamRefused, wal=story.with_instead(copy))


def test_stops_at_a_flipped_bit_of_an_object(story: Story, place: Path) -> None:
    copy = reship(story.chain.archive, story.holding(story.points["second"].lsn))
    key = story.chain.archive.key_of(copy)
    flip(story.chain.archive.bucket, key)
    assert key in stops(story, place, StreamRefused, wal=story.with_instead(copy))


def changed(story: Story, change: Callable[[bytearray], None]) -> WalFile:
    """A copy of the second point's segment, its raw bytes changed, under a genuine key."""
    file = story.holding(story.points["second"].lsn)
    raw = bytearray(b"".join(story.chain.archive.read(file)))
    change(raw)
    return smuggle(story.chain.archive, file.name, bytes(raw))


def test_stops_at_a_flipped_bit_of_the_log(story: Story, place: Path) -> None:
    def flip_before_the_point(raw: bytearray) -> None:
        raw[story.points["second"].lsn % SEGMENT - 5000] ^= 1

    copy = changed(story, flip_before_the_point)
    said = stops(story, place, RecoveryStopped, wal=story.with_instead(copy))
    assert copy.name in said
    assert "before its target" in said


def test_stops_at_a_segment_of_another_cluster(story: Story, place: Path) -> None:
    def reborn(raw: bytearray) -> None:
        raw[24] ^= 1

    copy = changed(story, reborn)
    said = stops(story, place, WalRefused, wal=story.with_instead(copy))
    assert "of the cluster" in said
    assert copy.name in said


def test_stops_at_a_segment_of_another_timeline(story: Story, place: Path) -> None:
    def newer(raw: bytearray) -> None:
        raw[4:8] = (7).to_bytes(4, "little")

    copy = changed(story, newer)
    said = stops(story, place, WalRefused, wal=story.with_instead(copy))
    assert "of timeline 7" in said
    assert copy.name in said


def test_stops_where_the_plan_ends_on_a_boundary(story: Story, place: Path) -> None:
    last = story.holding(story.points["third"].lsn)
    shorter = story.chain.wal[: story.chain.wal.index(last)]
    said = stops(story, place, RecoveryStopped, wal=shorter)
    assert "came to the end of its log before its target" in said
    assert last.name in said


def test_stops_at_a_name_that_is_elsewhere(story: Story, place: Path) -> None:
    wrong = StopAt(name="second", lsn=story.points["third"].lsn)
    said = stops(story, place, RecoveryStopped, stop=wrong)
    assert f"paused at {story.points['second'].lsn}, which is not its target" in said


def test_stops_at_a_point_before_the_base(story: Story, place: Path) -> None:
    before = StopAt(lsn=story.chain.manifest.base.start_lsn)
    assert "older base" in stops(story, place, RecoveryStopped, stop=before)


def test_refuses_a_plan_with_a_hole(story: Story, place: Path) -> None:
    hole = story.holding(story.points["second"].lsn)
    wal = tuple(file for file in story.chain.wal if file != hole)
    with (
        pytest.raises(LogIncomplete, match=f"lacks the segment {hole.name}"),
        story.chain.recovered(story.stop("third"), place, wal=wal),
    ):
        pass
    assert not place.exists()


def with_table(chain: Chain, change: Callable[[list[dict[str, Any]]], None]) -> OpenedBackup:
    """The base, with another table of its files."""
    lines = [json.loads(line) for line in b"".join(chain.opened().read(BASE_FILES)).splitlines()]
    change(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    manifest = chain.manifest
    attempt = new_attempt()
    create_data_key(chain.catalog.bucket, chain.catalog.keyring, owner=manifest.id, attempt=attempt)
    table = store(chain.catalog, manifest.backup, attempt, BASE_FILES, content)
    artifacts = tuple(table if each.name == BASE_FILES else each for each in manifest.artifacts)
    changed_manifest = manifest.model_copy(update={"artifacts": artifacts})
    return OpenedBackup(chain.catalog, changed_manifest, policy=POLICY, progress=Progress("test"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "../outside"}, "leads out of"),
        ({"name": "/etc/outside"}, "leads out of"),
        ({"name": "base/../../outside"}, "leads out of"),
        ({"name": "nowhere/file"}, "lies in no directory"),
        ({"name": "PG_VERSION"}, "twice"),
        ({"name": "pg_tblspc/4711/file"}, "lies in no directory"),
        ({"kind": "symlink", "link": "/etc", "name": "base/link"}, "is a link"),
        ({"kind": "symlink", "link": "/etc", "name": "pg_tblspc/4711"}, "is a link"),
        ({"tar": "database/other.tar"}, "no part of it"),
        ({"offset": 0}, "where another file is"),
        ({"size": 1 << 40}, "behind the end"),
    ],
)
def test_refuses_a_table_that_leads_astray(story: Story, place: Path, change: dict[str, Any], told: str) -> None:
    def astray(lines: list[dict[str, Any]]) -> None:
        lines.append(lines.pop() | {"name": "last"} | change)

    place.mkdir()
    with pytest.raises(BaseRefused, match=told):
        unpack_base(with_table(story.chain, astray), place / "data", policy=POLICY)
    assert list(place.iterdir()) == []


def test_leaves_nothing_of_a_base_with_a_flipped_bit(story: Story, place: Path) -> None:
    chain = story.chain
    [artifact] = [each for each in chain.manifest.artifacts if each.name == BASE]
    assert len(artifact.segments) > 2
    key = artifact.segments[-2].key
    flip(chain.catalog.bucket, key)
    place.mkdir()
    with pytest.raises(StreamRefused, match=key):
        unpack_base(chain.opened(), place / "data", policy=POLICY)
    assert list(place.iterdir()) == []
    repair(chain.catalog.bucket, key)


def test_a_base_that_was_changed_after_its_copy_is_unsound(story: Story, place: Path) -> None:
    place.mkdir()
    data = place / "data"
    unpack_base(story.chain.opened(), data, policy=POLICY)
    verify_base(tools_of(story.major), story.chain.manifest, data)
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in data.rglob("*") if path.is_file()} == {0o600}
    with (data / "global" / "pg_control").open("r+b") as file:
        file.write(b"?")
    with pytest.raises(RestoreDiffers, match="pg_control"):
        verify_base(tools_of(story.major), story.chain.manifest, data)


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; where only root may mount one, files that may not grow past a megabyte."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield directory
        finally:
            subprocess.run(["umount", str(directory)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield directory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.requirement("R5.1")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    story: Story, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, size = story.chain, 12 << 20
    log = len(chain.wal) * SEGMENT
    needed = chain.manifest.artifact(BASE).raw_bytes + log
    told = rf"{chain.manifest.id} takes {needed / 1e6:,.0f} MB .* {place}, which has 13 MB free\. Make room there"
    with small_disk(place, size) as disk, monkeypatch.context() as patch:
        if not disk.is_mount():
            patch.setattr(room, "free_bytes", lambda _: size)
        patch.setattr(Bucket, "read", pytest.fail)
        patch.setattr(Bucket, "read_oldest", pytest.fail)
        patch.setattr(Bucket, "read_range", pytest.fail)
        for directory in (disk, disk / "not" / "there yet"):
            with (
                pytest.raises(NoRoom, match=told.replace(str(place), str(directory))),
                chain.recovered(story.stop("third"), directory),
            ):
                pass
        assert list(disk.iterdir()) == []
    end = Lsn(segment_start(chain.manifest.base.start_lsn, SEGMENT) + log)
    for free, far in ((needed, end), (needed - log + (5 << 30), Lsn(end + (1 << 40)))):  # log is removed as it goes
        monkeypatch.setattr(room, "free_bytes", lambda _, free=free: free)
        require_room(place, chain.manifest, far)
    monkeypatch.setattr(room, "free_bytes", lambda _: needed - 1)
    with pytest.raises(NoRoom):
        require_room(place, chain.manifest, end)


@pytest.mark.requirement("R5.1")
@pytest.mark.parametrize("size", [12 << 20, 60 << 20], ids=["of the base", "of the log"])
def test_a_disk_that_fills_up_says_so_and_keeps_nothing(
    story: Story, place: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was room when it was looked at; somebody else has taken it since."""
    remove, there = shutil.rmtree, []

    def removed(path: Path, **how: Any) -> None:
        there.append((place / "data").exists())
        remove(path, **how)

    monkeypatch.setattr(room, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(shutil, "rmtree", removed)
    with small_disk(place, size) as disk:
        with (
            pytest.raises(BackupError, match="Make room there") as stopped,
            story.chain.recovered(story.stop("third"), disk, keep=True),
        ):
            pass
        assert list(disk.iterdir()) == []
    assert not isinstance(stopped.value, NoRoom)
    if "unpacked" in stopped.value.what:
        assert there
        assert not any(there)  # what was half-made had not its name yet
    else:
        assert size == 60 << 20


def test_keeps_a_cluster_that_goes_on_on_a_timeline_of_its_own(story: Story, place: Path) -> None:
    chain, second, tools = story.chain, story.points["second"], tools_of(story.major)
    with chain.recovered(story.stop("second"), place / "one", keep=True) as cluster:
        assert cluster.timeline == 2
    data = place / "one" / "data"
    assert list(data.parent.iterdir()) == [data]
    assert Control.read(tools, data).state == "shut down"
    assert "recovery_target_time" in (data / "postgresql.auto.conf").read_text()

    with PrivateServer(tools, data, place / "server", account=server_account()) as server:
        server.start({"wal_level": "replica", "wal_keep_size": "1GB"})
        session = wait_for(server.connect)
        with session, server.login(dbname="postgres").connect(application_name="test", autocommit=True) as branch:
            branch.execute("INSERT INTO entry SELECT n, '' FROM generate_series(9001, 9100) n")
            [(lsn,)] = branch.execute("SELECT pg_create_restore_point('branch')::text")
            branch.execute("INSERT INTO entry VALUES (9999, 'too late')")
            branch.execute("SELECT pg_switch_wal()")
            [(end,)] = branch.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        newer = ship_files(
            chain.archive, data / "pg_wal", lambda name: name.startswith("00000002") and (name < end or "h" in name)
        )
    history = TimelineHistory.parse(2, (data / "pg_wal" / "00000002.history").read_text())
    left = segment_name(1, history.switches[0][1], SEGMENT)
    wal = tuple(file for file in chain.wal if file.name < left) + newer
    stop = StopAt(name="branch", lsn=Lsn.parse(lsn))
    with chain.recovered(stop, place / "two", wal=wal, history=history) as cluster:
        assert rows(cluster) == [*range(1, second.rows + 1), *range(9001, 9101)]
        assert cluster.timeline == 3
    with chain.recovered(story.stop("second"), place / "three", keep=True) as cluster:
        assert cluster.timeline == 3  # the second is taken


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("major", [18, 15])
def test_recovers_tablespaces_where_they_touch_nothing(
    sandbox_directory: Path, catalog: Catalog, place: Path, major: int
) -> None:
    """And, because more was open at the base's checkpoint than that writes down, with nobody let in before the end."""
    directory = sandbox_directory / f"spaces-{major}"
    with PostgresServer(directory, major=major, durable=False, settings={"wal_keep_size": "1GB"}) as server:
        there = directory / "spaces"
        owner = server.data.stat()
        for path in (there, there / "old", there / "new"):
            path.mkdir(mode=0o700)
            os.chown(path, owner.st_uid, owner.st_gid)
        cluster = Cluster(server)
        cluster.run(f"CREATE TABLESPACE space LOCATION '{there}/old'")
        cluster.run("CREATE TABLE entry (n bigint) TABLESPACE space", "INSERT INTO entry VALUES (1)")
        with server.superuser.connect(application_name="test") as much:
            for number in range(70):
                much.execute(f"SAVEPOINT s{number}")
                much.execute("INSERT INTO entry VALUES (-1)")
            manifest = take_base(cluster, catalog, directory, day=100 + major)
            cluster.run("INSERT INTO entry VALUES (2)")
            point = Lsn.parse(cluster.value("SELECT pg_create_restore_point('open')::text"))
            cluster.run("INSERT INTO entry VALUES (3)")
            cluster.run(f"CREATE TABLESPACE later LOCATION '{there}/new'", "CREATE TABLE more (n int) TABLESPACE later")
            cluster.run("INSERT INTO more VALUES (1)")
            too_late = Lsn.parse(cluster.value("SELECT pg_create_restore_point('made')::text"))
            archive = archive_of(catalog, manifest)
            wal = ship(cluster, archive, manifest.base.start_lsn)
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert before
    [space] = manifest.base.tablespaces
    chain = Chain(catalog, archive, manifest, wal, TimelineHistory(1))
    with chain.recovered(StopAt(name="open", lsn=point), place) as recovered:
        assert rows(recovered) == [1, 2]
        link = recovered.data / "pg_tblspc" / str(space.oid)
        assert link.readlink() == place / "tablespaces" / str(space.oid)
        with recovered.login.connect(application_name="test", autocommit=True) as session:
            session.execute("INSERT INTO entry VALUES (4)")
            session.execute("CHECKPOINT")
    made = StopAt(name="made", lsn=too_late)
    with pytest.raises(RecoveryStopped, match="made after the base"), chain.recovered(made, place):
        pass
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before
    assert list(place.iterdir()) == []


def test_a_superuser_of_any_name_is_found(sandbox_directory: Path, catalog: Catalog, place: Path) -> None:
    directory = sandbox_directory / "renamed"
    with PostgresServer(directory, major=18, durable=False, settings={"wal_keep_size": "1GB"}) as server:
        cluster = Cluster(server)
        cluster.run("CREATE ROLE chief SUPERUSER LOGIN PASSWORD 'c'", "CREATE TABLE entry (n bigint)")
        chief = server.login("chief", "c")
        with chief.connect(application_name="test", autocommit=True) as session:
            session.execute('ALTER ROLE postgres RENAME TO "Zoë, the first"')
            session.execute("ALTER ROLE \"Zoë, the first\" SET session_preload_libraries = 'not_here'")
            session.execute("CHECKPOINT")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(PostgresServer, "superuser", property(lambda _: chief))
                manifest = take_base(cluster, catalog, directory, day=200)
                point = Lsn.parse(cluster.value("SELECT pg_create_restore_point('p')::text"))
                archive = archive_of(catalog, manifest)
                wal = ship(cluster, archive, manifest.base.start_lsn)
    chain = Chain(catalog, archive, manifest, wal, TimelineHistory(1))
    with chain.recovered(StopAt(name="p", lsn=point), place) as recovered:
        assert recovered.login.user == "Zoë, the first"
        assert rows(recovered) == []


HOLD = """
import json, sys
from pathlib import Path
import boto3
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.recovery.cluster.target import StopAt
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest, WalFile
from include.repository.timelines import TimelineHistory
from tests.snapshots import Chain, archive_of

told = json.load(sys.stdin)
session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
bucket = Bucket(session, told["bucket"], region=told["region"], endpoint_url=told["endpoint_url"])
catalog = Catalog(bucket, Keyring.load(Path(told["keyring"])))
manifest = Manifest.model_validate_json(told["manifest"])
wal = tuple(WalFile.model_validate_json(file) for file in told["wal"])
chain = Chain(catalog, archive_of(catalog, manifest), manifest, wal, TimelineHistory(1))
with chain.recovered(StopAt(name="first"), Path(told["place"])) as cluster:
    print((cluster.data / "postmaster.pid").read_text().split()[0], cluster.login.host, flush=True)
    import time
    time.sleep(600)
"""


def left_behind() -> dict[Path, TemporaryDirectory]:
    """What the reaper would take for a recovery's, once it is old enough."""
    return {each.path: each for each in recovery_directories(Path(tempfile.gettempdir()))}


def test_a_killed_recovery_leaves_no_server(
    story: Story, place: Path, s3_primary: S3Server, keyring_path: Path
) -> None:
    key = s3_primary.session().get_credentials()
    bucket = story.chain.catalog.bucket
    told = {
        "access_key": key.access_key,
        "secret_key": key.secret_key,
        "region": s3_primary.region,
        "endpoint_url": s3_primary.endpoint_url,
        "bucket": bucket.name,
        "keyring": str(keyring_path),
        "manifest": story.chain.manifest.model_dump_json(),
        "wal": [file.model_dump_json() for file in story.chain.wal],
        "place": str(place),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        child.stdin.write(json.dumps(told))
        child.stdin.close()
        pid, socket = child.stdout.readline().split()
        server = psutil.Process(int(pid))
        family = [server, *server.children(recursive=True)]
        assert len(family) > 3
        assert Path(socket) not in left_behind()
    finally:
        child.kill()
        child.wait()
    wait_for(lambda: all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in family))
    remove_directory(left_behind()[Path(socket)])
    assert not Path(socket).exists()


def test_the_spool_gives_what_is_waited_for_first(story: Story, place: Path) -> None:
    chain, log = story.chain, place / "pg_wal"
    log.mkdir(parents=True)
    gone = smuggle(chain.archive, "0000000100000000000000AA", b"no segment")
    huge = 1 << 30  # so two may lie ready
    spool = WalSpool(
        chain.archive, [*chain.wal, gone], place / "spool", segment_bytes=huge, policy=POLICY, progress=Progress("test")
    )

    def ask(name: str) -> int:
        command = ["sh", place / "spool" / "restore.sh", name, log / "RECOVERYXLOG"]
        return subprocess.run(command, check=False, timeout=60).returncode

    with spool:
        last, first = chain.wal[-1], chain.wal[0]
        for file in (last, first):
            assert ask(file.name) == 0
            taken = (log / "RECOVERYXLOG").rename(log / file.name)
            assert hashlib.sha256(taken.read_bytes()).hexdigest() == file.raw_sha256
        assert ask(first.name) == 1  # it is where PostgreSQL looks next
        assert ask("0000000100000000000000AB") == 1
        assert ask("00000002.history") == 1
        assert ask(gone.name) == 200
        (log / last.name).unlink()
        spool.begin_again()
        assert ask(last.name) == 0
    assert isinstance(spool.failure, WalRefused)
    assert not (place / "spool").exists()
