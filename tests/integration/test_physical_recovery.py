"""A cluster recovered to one moment: exactly what was committed by then, or an error that says where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.recovery.cluster import RecoveredCluster
from include.recovery.target import StopAt
from include.repository.catalog import Catalog
from include.repository.timelines import TimelineHistory
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.replication import Cluster
from tests.snapshots import Chain, Ledger, Point, archive_of, ship, take_base


@pytest.fixture(scope="module")
def catalog(s3_primary: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    name = s3_primary.create_bucket("physical-recovery")
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    return Catalog(store, Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json"))


@dataclass(frozen=True)
class Story:
    """What happened to one cluster, and what of it is in the bucket."""

    chain: Chain
    points: dict[str, Point]


@pytest.fixture(scope="module", params=[18, 15])
def story(request: pytest.FixtureRequest, sandbox_directory: Path, catalog: Catalog) -> Iterator[Story]:
    """Three restore points, a segment or more apart, after a base."""
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
            ledger.write(10)
            cluster.switch()
        archive = archive_of(catalog, manifest)
        wal = ship(cluster, archive, manifest.base.start_lsn)
        yield Story(Chain(catalog, archive, manifest, wal, TimelineHistory(1)), points)


@pytest.fixture
def place(sandbox_directory: Path, request: pytest.FixtureRequest) -> Path:
    return sandbox_directory / request.node.name.replace("[", "-").replace("]", "")


def rows(cluster: RecoveredCluster) -> list[int]:
    with cluster.login.connect(application_name="test") as session:
        return [n for (n,) in session.execute("SELECT n FROM entry ORDER BY n")]


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_recovers_to_a_named_point(story: Story, place: Path, name: str) -> None:
    point = story.points[name]
    with story.chain.recovered(StopAt(name=name, lsn=point.lsn), place) as cluster:
        assert rows(cluster) == list(range(1, point.rows + 1))
        assert (cluster.reached, cluster.timeline, cluster.warnings) == (point.lsn, 2, ())
        with cluster.login.connect(application_name="test") as session:
            session.execute("INSERT INTO entry VALUES (0, 'it takes writes')")
    assert list(place.iterdir()) == []
