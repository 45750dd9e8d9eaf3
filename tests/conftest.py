"""Real servers for the tests, each started once a session."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from psycopg import sql

from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.server import terminated_like_interrupted

# How long an example takes depends on what else runs here.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on Ceph's gateway, so that `make gateway` finds it: by fixture, or by a parameter."""
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if "ceph" in getattr(item, "fixturenames", ()) or "ceph" in parameters:
            item.add_marker(pytest.mark.gateway)


@pytest.fixture(scope="session")
def sandbox_directory() -> Iterator[Path]:
    """A directory for servers, removed at the end.

    It is not under pytest's own, which only its owner may pass: as root, PostgreSQL runs as somebody else.
    """
    directory = Path(tempfile.mkdtemp(prefix="synapse-backups-tests-"))
    directory.chmod(0o711)
    with terminated_like_interrupted():
        try:
            yield directory
        finally:
            shutil.rmtree(directory)


@pytest.fixture(scope="session")
def shared() -> list[PostgresServer]:
    """The servers that several modules use, as they are started."""
    return []


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(shared: list[PostgresServer]) -> Iterator[None]:
    """A module leaves no database and no role on a shared server: which module comes next there is chance."""
    yield
    for server in shared:
        with server.superuser.connect(application_name="test", autocommit=True) as session:
            for (name,) in session.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").fetchall():
                if name != "postgres" and not name.startswith("airflow"):
                    session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            for (name,) in session.execute("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall():
                session.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def postgres18(sandbox_directory: Path, shared: list[PostgresServer]) -> Iterator[PostgresServer]:
    """PostgreSQL 18, from the embedded wheel."""
    with PostgresServer(sandbox_directory / "postgres18", major=18, durable=False) as server:
        shared.append(server)
        yield server


@pytest.fixture(scope="session")
def postgres15(sandbox_directory: Path, shared: list[PostgresServer]) -> Iterator[PostgresServer]:
    """PostgreSQL 15, Debian's (the packages `postgresql-15` and `postgresql-contrib`)."""
    with PostgresServer(sandbox_directory / "postgres15", major=15, durable=False) as server:
        shared.append(server)
        yield server


@pytest.fixture(scope="session")
def s3_primary(sandbox_directory: Path) -> Iterator[S3Server]:
    """The region that backups go to (R3.1)."""
    with S3Server(sandbox_directory / "s3-primary", region="eu-west-1") as server:
        yield server
        server.crash()  # what it would save is removed


@pytest.fixture(scope="session")
def s3_replica(sandbox_directory: Path) -> Iterator[S3Server]:
    """The region that backups are copied to (R3.2), on a server of its own."""
    with S3Server(sandbox_directory / "s3-replica", region="us-east-1") as server:
        yield server
        server.crash()


@pytest.fixture(scope="session")
def ceph(sandbox_directory: Path) -> Iterator[CephGateway]:
    """Another S3 server, which ignores `If-None-Match` and checksums (Debian's `radosgw`, `ceph-mon`, `ceph-osd`)."""
    with CephGateway(sandbox_directory / "ceph") as gateway:
        yield gateway


@pytest.fixture
def bucket(s3_primary: S3Server) -> str:
    """The name of a fresh, versioned bucket on `s3_primary`."""
    return s3_primary.create_bucket(f"bucket-{secrets.token_hex(8)}")
