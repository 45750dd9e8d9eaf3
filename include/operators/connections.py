"""Airflow connections, resolved through the providers' hooks into the engine's plain values.

What the hooks know how to do keeps working: TLS settings and IAM tokens of a PostgreSQL connection; assumed roles,
federated and instance credentials of an AWS one, refreshed while a long backup runs.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from include.errors import Hopeless
from include.monitoring.notifications import Channel, MailServer
from include.pipeline.store import STALL_LIMIT, Bucket
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

if TYPE_CHECKING:
    import boto3
    from airflow.sdk import Connection

POSTGRES_PORT = 5432
SMTPS_PORT, SUBMISSION_PORT = 465, 587


class ConnectionUnusable(Hopeless):
    """An Airflow connection that is missing, or lacks what it is for."""


def database_login(conn_id: str) -> DatabaseLogin:
    """The login that a `postgres` connection holds; extra `sslmode`, `sslrootcert` and `options` are libpq's.

    With extra `iam` the password is a token of RDS. Raises `ConnectionUnusable`.
    """
    connection = _connection(conn_id)
    user, password, port = connection.login or "", connection.password or "", connection.port or POSTGRES_PORT
    extra = connection.extra_dejson
    if extra.get("iam"):
        from airflow.providers.postgres.hooks.postgres import PostgresHook  # noqa: PLC0415 - half a second

        user, password, port = PostgresHook(postgres_conn_id=conn_id).get_iam_token(connection)
    mask_secret(password)
    return DatabaseLogin(
        host=_needed(connection, "host", connection.host),
        port=port,
        user=_needed(connection, "login", user),
        password=password,
        dbname=_needed(connection, "schema (the database)", connection.schema),
        sslmode=extra.get("sslmode", "prefer"),
        sslrootcert=extra.get("sslrootcert"),
        options=extra.get("options", ""),
    )


def bucket(
    conn_id: str, *, name: str | None = None, region: str | None = None, stall_limit: timedelta = STALL_LIMIT
) -> Bucket:
    """The bucket that an `aws` connection reaches; its `service_config.s3.bucket_name` and region go before ours.

    Raises `ConnectionUnusable` when there is no connection, or neither it nor we name a bucket.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: PLC0415 - a quarter of a second

    connection = _connection(conn_id)  # the hook would go on without one, with whatever credentials the worker has
    hook = S3Hook(aws_conn_id=conn_id)
    region = hook.conn_config.region_name or region
    return Bucket(
        hook.get_session(region_name=region),
        _needed(connection, "extra.service_config.s3.bucket_name", hook.service_config.get("bucket_name") or name),
        region=region,
        endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
        stall_limit=stall_limit,
    )


def bucket_place(conn_id: str, *, name: str | None = None) -> tuple[str, str | None]:
    """The bucket's name and the store's endpoint (None for AWS), as `bucket` takes them; nobody is asked for anything.

    Raises `ConnectionUnusable`.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: PLC0415 - a quarter of a second

    connection, hook = _connection(conn_id), S3Hook(aws_conn_id=conn_id)
    named = _needed(connection, "extra.service_config.s3.bucket_name", hook.service_config.get("bucket_name") or name)
    return named, hook.conn_config.get_service_endpoint_url("s3")


def session(conn_id: str, *, region: str) -> boto3.Session:
    """The credentials of an `aws` connection, for another service than S3. Raises `ConnectionUnusable`."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: PLC0415 - a quarter of a second

    _connection(conn_id)
    return S3Hook(aws_conn_id=conn_id).get_session(region_name=region)


def route53(conn_id: str) -> Any:
    """A client of Route 53 with the credentials of an `aws` connection; its `endpoint_url` goes before AWS's own.

    Raises `ConnectionUnusable`.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: PLC0415 - a quarter of a second

    from include.disaster.switches import dns_client  # noqa: PLC0415

    _connection(conn_id)
    hook = S3Hook(aws_conn_id=conn_id)
    return dns_client(hook.get_session(), endpoint_url=hook.conn_config.get_service_endpoint_url("route53"))


def configuration(conn_id: str) -> Configuration:
    """The checkout of the configuration repository: the connection's host is its path."""
    connection = _connection(conn_id)
    return Configuration(Path(_needed(connection, "host (the path of the checkout)", connection.host)))


def mail_server(conn_id: str) -> MailServer:
    """The server that an `smtp` connection names, with the provider's extras. Raises `ConnectionUnusable`.

    TLS from the first byte, unless extra `disable_ssl`; then STARTTLS, unless extra `disable_tls`.
    """
    connection = _connection(conn_id)
    extra = connection.extra_dejson
    wrapped = not extra.get("disable_ssl", False)
    return MailServer(
        host=_needed(connection, "host", connection.host),
        port=connection.port or (SMTPS_PORT if wrapped else SUBMISSION_PORT),
        sender=_needed(connection, "extra.from_email", extra.get("from_email")),
        login=connection.login or None,
        password=connection.password or "",
        security="tls" if wrapped else "none" if extra.get("disable_tls", False) else "starttls",
    )


def channel(conn_id: str) -> Channel:
    """The chat or pager whose Apprise URL is a connection's password: Airflow encrypts and masks it there.

    Raises `ConnectionUnusable`.
    """
    connection = _connection(conn_id)
    url = _needed(connection, "password (the channel's Apprise URL)", connection.password)
    for secret in (url, *re.split(r"[/:@?&=]+", url.partition("://")[2])):
        mask_secret(secret)  # what talks to the channel may log a part of its URL
    return Channel(url)


def _connection(conn_id: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConnectionUnusable(
            f"There is no Airflow connection {conn_id}.",
            mend="Add it: airflow_settings.yaml shows every connection, and include/operators/settings.py loads it.",
        ) from None


def _needed(connection: Connection, field: str, value: str | None) -> str:
    if not value:
        raise ConnectionUnusable(
            f"The Airflow connection {connection.conn_id} has no {field}.", mend="airflow_settings.yaml shows it whole."
        )
    return value
