"""The way back: base and log where they lead there, a full backup where the chain is broken; proved by going (R5.3)."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg import sql

from include.backup.full import make_full_backup
from include.backup.snapshot import make_snapshot
from include.disaster.isolation import drill_places, erase
from include.disaster.route import Route, SiteBusy, go, plan_route, reopen_route
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.places import Places
from include.recovery.moments.plan import Target, Unreachable
from include.recovery.validation.recovered import EXPECTED, Expected
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.relations import list_relations

POLICY = load_policy()
LATEST = Target.parse("latest")


def test_without_any_base_it_is_the_newest_full_backup(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    route = plan_route(catalog, LATEST, POLICY, scratch=tmp_path)
    assert route.full is not None
    assert route.full.id == manifest.id
    assert route.reaches == manifest.consistency_point.time
    assert "no base" in route.because
    assert reopen_route(route.to_json(), catalog, POLICY) == route


def test_before_every_full_backup_there_is_no_way(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    earlier = manifest.consistency_point.time - timedelta(hours=1)
    with pytest.raises(Unreachable):
        plan_route(catalog, Target.parse(earlier.isoformat()), POLICY, scratch=tmp_path)


@pytest.mark.requirement("R5.3")
def test_a_full_backup_comes_back_whole_to_the_places_of_a_drill(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    route = plan_route(catalog, LATEST, POLICY, scratch=tmp_path)
    run = f"20261122t{secrets.randbelow(10**12):012}"
    bucket = Bucket(
        installation.primary.session(),
        installation.recovered,
        region=installation.primary.region,
        endpoint_url=installation.primary.endpoint_url,
    )
    places = drill_places(run, server=installation.scratch, bucket=bucket, root=tmp_path)
    assert places.configuration is not None
    places.configuration.parent.mkdir()
    facts = go(route, catalog, POLICY, places=places, scratch=tmp_path / "scratch")
    expected = tmp_path / "scratch" / EXPECTED
    written = Expected.read(expected)
    assert written.reaches == manifest.consistency_point.time
    assert written.inventory is not None
    assert written.inventory.rows == facts["restored_rows"] == manifest.database.rows
    with installation.synapse.database.connect(application_name="test") as session:
        assert written.constraints == list_constraints(session, list_relations(session).all)
    assert written.objects == manifest.objects.objects == len(list(bucket.keys(places.prefix)))
    assert written.commit == manifest.consistency_point.configuration_commit
    assert written.tables == ()
    assert "privileges" in " ".join(written.left_out)
    assert expected.stat().st_mode & 0o777 == 0o600
    erase(places, tmp_path)


@pytest.mark.requirement("R5.3")
def test_of_a_full_backup_one_table_comes_back_alone(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    run, tables = f"20261122t{secrets.randbelow(10**12):012}", ("public.attachments",)
    places = drill_places(run, server=installation.scratch, bucket=None, root=None, tables=tables)
    go(Route(full=manifest), catalog, POLICY, places=places, scratch=tmp_path / "scratch")
    written = Expected.read(tmp_path / "scratch" / EXPECTED)
    assert (written.tables, written.objects, written.commit) == (tables, None, None)
    with installation.scratch.with_database(f"drill_{run}").connect(application_name="test") as session:
        named = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'public'"
        assert session.execute(named).fetchall() == [tables]
    erase(places, tmp_path)


@pytest.mark.requirement("R5.3")
def test_over_what_is_live_a_full_backup_comes_back_whole_and_what_was_there_is_kept(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    superuser, primary = installation.postgres.superuser, installation.primary
    bucket = Bucket(primary.session(), installation.recovered, region=primary.region, endpoint_url=primary.endpoint_url)
    key = min(installation.synapse.fingerprint().objects)
    bucket.put(key, b"changed since")
    bucket.put("users/own.txt", b"written since")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "edited.txt").write_text("since")
    with superuser.connect(application_name="test", autocommit=True) as session:
        session.execute("CREATE DATABASE synapse_over")
    over = superuser.with_database("synapse_over")
    with over.connect(application_name="test", autocommit=True) as session:
        session.execute("CREATE TABLE written_since ()")
    places = Places(superuser, "synapse_over", bucket, "", checkout, (), live=True, run="20261122t000000000000")
    objects_alone = replace(places, server=None, database=None, configuration=None)
    first, again = (
        go(Route(full=manifest), catalog, POLICY, places=each, scratch=tmp_path / "scratch")
        for each in (places, objects_alone)
    )
    source = installation.synapse.bucket
    assert bucket.read(key) == primary.client().get_object(Bucket=source, Key=key)["Body"].read()
    assert bucket.read("users/own.txt") == b"written since"
    assert first["objects"] == manifest.objects.objects > again["objects"]  # the second time most are there
    assert Expected.read(tmp_path / "scratch" / EXPECTED).objects == manifest.objects.objects
    assert (checkout / ".git").is_dir()
    assert [path.name for path in tmp_path.glob("*/edited.txt")] == ["edited.txt"]
    assert not (checkout / "edited.txt").exists()
    kept = first["database_replaced"]
    with superuser.with_database(kept).connect(application_name="test", autocommit=True) as session:
        assert session.execute("SELECT to_regclass('written_since')::text").fetchone() == ("written_since",)
    with superuser.connect(application_name="test", autocommit=True) as session:
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'synapse_over'"
        assert session.execute(owner).fetchone() == ("synapse_app",)
        for name in ("synapse_over", kept):
            session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    for version in list(bucket.versions("")):
        bucket.delete_version(version.key, version.version_id)


@pytest.mark.requirement("R5.3")
def test_two_recoveries_never_write_to_one_site_at_once(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    route = Route(full=manifest)
    superuser = installation.postgres.superuser
    places = Places(superuser, "synapse_site", None, "", None, (), live=True, run="20261122t000000000000")
    with superuser.connect(application_name="the other recovery", autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('synapse-backups recovery to synapse_site', 0))")
        with pytest.raises(SiteBusy, match="synapse_site on"):
            go(route, catalog, POLICY, places=places, scratch=tmp_path / "scratch")
    assert go(route, catalog, POLICY, places=places, scratch=tmp_path / "scratch")["database"] == "synapse_site"
    with superuser.connect(application_name="test", autocommit=True) as session:
        session.execute("DROP DATABASE synapse_site")


@pytest.mark.requirement("R5.3")
def test_base_and_log_go_first_and_what_is_newer_than_all_log_is_a_full_backup(
    installation: Installation, catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    application = installation.application()
    snapshot = make_snapshot(
        BackupId.parse("snapshot-20261122T000000Z"),
        slot=None,
        application=application,
        catalog=catalog,
        policy=POLICY,
        scratch=tmp_path,
    )
    route = plan_route(catalog, LATEST, POLICY, scratch=tmp_path)
    assert route.recovery is not None
    assert route.recovery.base.id == snapshot.id
    assert reopen_route(route.to_json(), catalog, POLICY).recovery == route.recovery
    newer = make_full_backup(
        BackupId.parse("full-20261123T000000Z"),
        slot=None,
        application=application,
        catalog=catalog,
        policy=POLICY,
        scratch=tmp_path,
    )
    late = plan_route(catalog, LATEST, POLICY, scratch=tmp_path)
    assert late.full is not None
    assert late.full.id == newer.id
    assert "earlier" in late.because
    back = plan_route(catalog, Target.parse(manifest.id), POLICY, scratch=tmp_path)
    assert back.full is not None  # no base is as old
    assert back.full.id == manifest.id
