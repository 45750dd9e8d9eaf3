"""Airflow's connections without Airflow: from a settings file, or from `AIRFLOW_CONN_…` variables, as plain values.

What only the providers' hooks can do (assumed roles, tokens of IAM) is not done here: it is said, and passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import boto3

from include.backup.application import Application
from include.backup.checks.check import Unseen
from include.disaster.switches import dns_client
from include.errors import BackupError
from include.pipeline.store import Bucket
from include.policy import Policy
from include.settings import read_settings
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

PREFIX = "AIRFLOW_CONN_"
POSTGRES_PORT = 5432
_OF_HOOKS = ("role_arn", "assume_role_method", "iam")


class ConnectionUnusable(BackupError):
    """A connection that the policy names, and that is missing or lacks what it is for."""


@dataclass(frozen=True)
class Connections:
    """Connections by id. `file` is the settings file that holds all of them; without one, others may be elsewhere."""

    file: Path | None
    by_id: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def read(cls, settings: Path | None, environment: Mapping[str, str]) -> Connections:
        """Those of the settings file, or of the environment without one; raises `SettingsRefused`."""
        if settings is not None:
            return cls(settings, read_settings(settings).connections)
        found = {
            name.removeprefix(PREFIX).lower(): _parse(name, text)
            for name, text in environment.items()
            if name.startswith(PREFIX)
        }
        return cls(None, found)

    def has(self, name: str) -> bool:
        """Whether that connection is one of them."""
        return name in self.by_id

    def login(self, name: str) -> DatabaseLogin:
        """The login that a `postgres` connection holds; raises `ConnectionUnusable` or `Unseen`."""
        connection, extra = self._get(name)
        return DatabaseLogin(
            host=self._needed(name, connection, "host"),
            port=int(connection.get("port") or POSTGRES_PORT),
            user=self._needed(name, connection, "login"),
            password=connection.get("password") or "",
            dbname=self._needed(name, connection, "schema"),
            sslmode=extra.get("sslmode", "prefer"),
            sslrootcert=extra.get("sslrootcert"),
            options=extra.get("options", ""),
        )

    def bucket(self, name: str, *, called: str | None = None, region: str | None = None) -> Bucket:
        """The bucket that an `aws` connection reaches: its own name and region go before those given."""
        _, extra = self._get(name)
        of_s3 = (extra.get("service_config") or {}).get("s3") or {}
        bucket = of_s3.get("bucket_name") or called
        if not bucket:
            raise ConnectionUnusable(
                f"The connection {name} has no extra.service_config.s3.bucket_name.",
                mend="airflow_settings.yaml shows it whole.",
            )
        session = self._session(name)
        endpoint = of_s3.get("endpoint_url") or extra.get("endpoint_url")
        return Bucket(session, bucket, region=extra.get("region_name") or region, endpoint_url=endpoint)

    def configuration(self, name: str) -> Configuration:
        """The checkout whose path is the connection's host."""
        connection, _ = self._get(name)
        return Configuration(Path(self._needed(name, connection, "host")))

    def dns(self, name: str) -> Any:
        """A client of Route 53 with the credentials of an `aws` connection."""
        _, extra = self._get(name)
        of_dns = (extra.get("service_config") or {}).get("route53") or {}
        endpoint = of_dns.get("endpoint_url") or extra.get("endpoint_url")
        return dns_client(self._session(name), endpoint_url=endpoint)

    def application(self, policy: Policy) -> Application:
        """What is backed up, through the connections that the policy names."""
        sources = policy.sources
        return Application(
            barrier=self.login(sources.database.barrier_connection),
            dump=self.login(sources.database.dump_connection),
            replication=self.login(sources.database.replication_connection),
            objects=self.bucket(sources.objects.connection),
            configuration=self.configuration(sources.configuration.connection),
        )

    def _session(self, name: str) -> boto3.Session:
        connection, extra = self._get(name)
        return boto3.Session(
            aws_access_key_id=connection.get("login") or None,
            aws_secret_access_key=connection.get("password") or None,
            aws_session_token=extra.get("aws_session_token"),
            profile_name=extra.get("profile_name"),
        )

    def _get(self, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        connection = self.by_id.get(name)
        if connection is None and self.file is None:
            raise Unseen(
                f"Not looked at: there is no {PREFIX}{name.upper()} here, and what Airflow keeps is not read.",
                mend="Name the filled-in airflow_settings.yaml with --settings, or set that variable.",
            )
        if connection is None:
            raise ConnectionUnusable(
                f"There is no connection {name} in {self.file}, and the policy names it.",
                mend="Add it (the project's airflow_settings.yaml shows every connection), or correct the policy.",
            )
        extra = connection.get("extra") or {}
        extra = json.loads(extra) if isinstance(extra, str) else extra
        if hooks := [each for each in _OF_HOOKS if extra.get(each)]:
            raise Unseen(
                f"Not looked at: the connection {name} has {', '.join(hooks)}, which Airflow's own hook resolves.",
                mend="A run's prepare group looks at it; here, give credentials of your own.",
            )
        return connection, extra

    def _needed(self, name: str, connection: Mapping[str, Any], what: str) -> str:
        if not (value := connection.get(what)):
            raise ConnectionUnusable(
                f"The connection {name} has no {what}.", mend="airflow_settings.yaml shows it whole."
            )
        return str(value)


def _parse(variable: str, text: str) -> dict[str, Any]:
    """A connection as Airflow reads it from a variable: JSON, or a URI whose query is the extra."""
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        whole = query.pop("__extra__", None)
        return {
            "host": unquote(parts.hostname or ""),
            "port": parts.port,
            "login": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "schema": unquote(parts.path.removeprefix("/")),
            "extra": json.loads(whole) if whole else query,
        }
    except ValueError:
        raise ConnectionUnusable(  # never with the text, which holds a password
            f"{variable} is neither a connection in JSON nor a URI.", mend="Write it as airflow.apache.org says."
        ) from None
