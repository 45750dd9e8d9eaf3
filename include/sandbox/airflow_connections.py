"""The sandbox's Airflow connections: the logins with the least grants, the buckets and the checkout."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from psycopg import sql

from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sources.postgres.login import DatabaseLogin

GRANTS = Path(__file__).parents[1] / "sources" / "postgres" / "grants.sql"
SCRATCH_USER = "synapse_backup_scratch"

Connections = dict[str, Mapping[str, object]]


def synapse_connections(
    synapse: Synapse, *, objects: S3Server, backups: S3Server, bucket: str, scratch: DatabaseLogin | None = None
) -> Connections:
    """Every connection that the policy names, by id, for this application and the backup `bucket` on `backups`.

    The backup's logins are made on the application's server (`grants.sql`), each with a new password. Samples are
    restored on `scratch`, a superuser's login, else on the application's own server.
    """
    scratch = scratch or synapse.server
    return {
        "synapse_database_barrier": _postgres(_granted(synapse, "synapse_backup_barrier")),
        "synapse_database_dump": _postgres(_granted(synapse, "synapse_backup_dump")),
        "synapse_database_scratch": _postgres(_scratch(scratch)),
        "synapse_objects": _bucket(objects, synapse.bucket),
        "synapse_backups_primary": _bucket(backups, bucket),
        "synapse_configuration": {"conn_type": "generic", "host": str(synapse.configuration)},
    }


def _granted(synapse: Synapse, user: str) -> DatabaseLogin:
    with synapse.database.connect(application_name="sandbox", autocommit=True) as connection:
        connection.execute(GRANTS.read_bytes())
    return _with_password(synapse.database, user)


def _scratch(server: DatabaseLogin) -> DatabaseLogin:
    """A login that may create databases and nothing else."""
    with server.connect(application_name="sandbox", autocommit=True) as connection:
        exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (SCRATCH_USER,)).fetchone()
        if not exists:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(SCRATCH_USER)))
    return _with_password(server, SCRATCH_USER)


def _with_password(server: DatabaseLogin, user: str) -> DatabaseLogin:
    password = secrets.token_urlsafe(24)
    with server.connect(application_name="sandbox", autocommit=True) as connection:
        change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(password))
        connection.execute(change)
    return replace(server, user=user, password=password)


def _postgres(login: DatabaseLogin) -> Mapping[str, object]:
    return {
        "conn_type": "postgres",
        "host": login.host,
        "port": login.port,
        "login": login.user,
        "password": login.password,
        "schema": login.dbname,
        "extra": {"sslmode": login.sslmode},
    }


def _bucket(server: S3Server, name: str) -> Mapping[str, object]:
    credentials = server.session().get_credentials()
    assert credentials is not None  # noqa: S101 - the server's own root key
    return {
        "conn_type": "aws",
        "login": credentials.access_key,
        "password": credentials.secret_key,
        "extra": {
            "region_name": server.region,
            "endpoint_url": server.endpoint_url,
            "service_config": {"s3": {"bucket_name": name}},
        },
    }
