"""A drill's places: of its own, never another's, and gone with every version when it is over (R5.3)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import Connection, sql

from include.disaster.isolation import NotErased, directory, drill_places, erase, leftovers, remove, stamp
from include.pipeline.store import Bucket
from include.recovery.moments.places import Places
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.login import DatabaseLogin

NOW = datetime(2026, 11, 22, 10, 37, 12, 123456, tzinfo=UTC)


@pytest.fixture
def login(postgres18: PostgresServer) -> Iterator[DatabaseLogin]:
    """One that may create databases, and nothing else."""
    name, password = f"drill_{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    with postgres18.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        )
    yield postgres18.login(name, password)
    with postgres18.superuser.connect(application_name="test", autocommit=True) as session:
        owned = session.execute("SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = %s", [name]).fetchall()
        for (database,) in owned:
            session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(database)))
        session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def looked_at(s3_primary: S3Server, bucket: str) -> Bucket:
    return Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)


def fill(places: Places, looked_at: Bucket) -> None:
    """What a drill makes: a database, objects with older versions and an unfinished upload, files."""
    assert places.server is not None
    assert places.database is not None
    assert places.configuration is not None
    with places.server.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(places.database)))
    for key in ("uploads/a.md", "uploads/a.md", "media/b & c.png"):
        looked_at.client.put_object(Bucket=looked_at.name, Key=places.prefix + key, Body=secrets.token_bytes(10))
    looked_at.delete(f"{places.prefix}media/b & c.png")
    looked_at.client.create_multipart_upload(Bucket=looked_at.name, Key=f"{places.prefix}uploads/half")
    places.configuration.mkdir(parents=True)
    (places.configuration / "secrets.key").write_text("x")


def left(places: Places, looked_at: Bucket, root: Path) -> list[str]:
    assert places.server is not None
    with places.server.connect(application_name="test", autocommit=True) as session:
        named = session.execute("SELECT datname FROM pg_database WHERE datname = %s", [places.database]).fetchall()
    return [
        *(name for (name,) in named),
        *(version.key for version in looked_at.versions(places.prefix)),
        *(upload.key for upload in looked_at.unfinished_uploads(places.prefix)),
        *(path.name for path in root.glob(directory(places.run))),
    ]


@pytest.mark.requirement("R5.3")
def test_a_drill_leaves_nothing_and_another_one_is_not_touched(
    login: DatabaseLogin, looked_at: Bucket, tmp_path: Path
) -> None:
    one, other = (
        drill_places(stamp(NOW, run), server=login, bucket=looked_at, root=tmp_path) for run in ("one", "other")
    )
    for places in (one, other):
        fill(places, looked_at)
    looked_at.client.put_object(Bucket=looked_at.name, Key="recovered/somebody's", Body=b"x")
    before = left(other, looked_at, tmp_path)
    with login.with_database(str(one.database)).connect(application_name="a forgotten application"):
        assert len(erase(one, tmp_path)) == 3
    assert left(one, looked_at, tmp_path) == []
    assert left(other, looked_at, tmp_path) == before
    assert list(looked_at.keys("recovered/")) == ["recovered/somebody's"]
    assert erase(one, tmp_path) == []


@pytest.mark.requirement("R5.3")
def test_a_database_goes_with_who_is_in_it_and_the_autovacuum_that_came_by(
    postgres18: PostgresServer, login: DatabaseLogin, tmp_path: Path
) -> None:
    places = drill_places(stamp(NOW + timedelta(seconds=2), "run"), server=login, bucket=None, root=tmp_path)
    with (
        postgres18.superuser.connect(application_name="test", autocommit=True) as superuser,
        often_vacuumed(superuser),
        login.connect(application_name="test", autocommit=True) as session,
    ):
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(str(places.database))))
        with login.with_database(str(places.database)).connect(
            application_name="a forgotten application", autocommit=True
        ) as forgotten:
            forgotten.execute(SLOWLY_VACUUMED)
            forgotten.execute("UPDATE t SET a = a + 1")
            vacuumed = "SELECT FROM pg_stat_activity WHERE query LIKE 'autovacuum: VACUUM%%' AND datname = %s"
            deadline = time.monotonic() + 60
            while superuser.execute(vacuumed, [places.database]).fetchone() is None:
                assert time.monotonic() < deadline, "no autovacuum came by"
            assert erase(places, tmp_path) == [f"the database {places.database}"]
            assert erase(places, tmp_path) == []


SLOWLY_VACUUMED = """
    CREATE TABLE t WITH (
        autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
    ) AS SELECT a, repeat('x', 1000) FROM generate_series(1, 5000) a
"""


@contextmanager
def often_vacuumed(superuser: Connection) -> Iterator[None]:
    superuser.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    superuser.execute("SELECT pg_reload_conf()")
    yield
    superuser.execute("ALTER SYSTEM RESET autovacuum_naptime")
    superuser.execute("SELECT pg_reload_conf()")


@pytest.mark.requirement("R5.3")
def test_what_a_killed_drill_left_goes_when_it_is_old(login: DatabaseLogin, looked_at: Bucket, tmp_path: Path) -> None:
    old, young = (
        drill_places(stamp(moment, "run"), server=login, bucket=looked_at, root=tmp_path)
        for moment in (NOW - timedelta(days=3), NOW)
    )
    for places in (old, young):
        fill(places, looked_at)
    (tmp_path / "drill-notes").mkdir()
    found = leftovers(server=login, bucket=looked_at, root=tmp_path, before=NOW - timedelta(days=2))
    assert {each.run for each in found} == {old.run}
    assert len(found) == 3
    assert len(remove(found)) == 3
    assert left(old, looked_at, tmp_path) == []
    assert len(left(young, looked_at, tmp_path)) == 7
    assert (tmp_path / "drill-notes").is_dir()
    erase(young, tmp_path)


@pytest.mark.requirement("R5.3")
def test_what_cannot_be_removed_is_named_when_all_else_is_gone(
    postgres18: PostgresServer, login: DatabaseLogin, looked_at: Bucket, tmp_path: Path
) -> None:
    places = drill_places(stamp(NOW + timedelta(seconds=1), "run"), server=login, bucket=looked_at, root=tmp_path)
    fill(places, looked_at)
    with postgres18.superuser.connect(application_name="test", autocommit=True) as session:
        name = sql.Identifier(str(places.database))
        session.execute(sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(name))
    with pytest.raises(NotErased, match="must be owner") as caught:
        erase(places, tmp_path)
    assert str(places.database) in caught.value.what
    assert left(places, looked_at, tmp_path) == [places.database]
    with postgres18.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("DROP DATABASE {}").format(name))
