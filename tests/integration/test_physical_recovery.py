"""A cluster recovered to one moment: exactly what was committed by then, or an error that says where it stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from include.errors import BackupError
from include.pipeline.account import server_account
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket
from include.recovery.base import unpack_base
from include.recovery.cluster import RecoveredCluster, RecoveryStopped, replayed
from include.recovery.control import Control
from include.recovery.soundness import ClusterUnsound, check_contents, check_relations
from include.recovery.target import StopAt
from include.recovery.wal_spool import LogIncomplete
from include.repository.catalog import Catalog
from include.repository.lsn import Lsn, segment_name
from include.repository.manifest import WalFile
from include.repository.timelines import TimelineHistory
from include.repository.wal import WalRefused
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.inventory import Inventory, TableContent, take_inventory
from include.sources.postgres.relations import list_relations
from include.sources.postgres.tools import tools_of
from tests.damage import flip
from tests.replication import SEGMENT, Cluster
from tests.snapshots import POLICY, Chain, Ledger, Point, archive_of, reship, ship, smuggle, take_base


@pytest.fixture(scope="module")
def catalog(s3_primary: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    name = s3_primary.create_bucket("physical-recovery")
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    return Catalog(store, Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json"))


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


def test_what_was_recovered_is_proved(story: Story, place: Path) -> None:
    with story.chain.recovered(story.stop("third"), place, verify=True) as cluster:
        check_relations(cluster)
        check_contents(cluster, story.inventory)
        fewer = Inventory({"public.entry": TableContent(1, "0 0")}, {})
        with pytest.raises(ClusterUnsound, match=r"public\.entry: \d+ rows more"):
            check_contents(cluster, fewer)


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
