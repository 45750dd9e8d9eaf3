"""A whole installation on the sandbox's servers: a seeded Synapse, logins with the least grants, buckets, a keyring."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from include.backup.application import Application
from include.backup.scratch import SCRATCH_VARIABLE
from include.disaster.plan import DisasterPlan, load_plan
from include.disaster.switches import dns_client
from include.errors import BackupError
from include.pipeline.keys import KEYRING_VARIABLE, Keyring
from include.pipeline.store import Bucket
from include.repository.catalog import Catalog
from include.sandbox.application import SynapseService
from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sources import postgres as postgres_source
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

GRANTS = Path(postgres_source.__file__).with_name("grants.sql")
POLL_SECONDS, SETTLED_WITHIN = 0.05, 10.0
FILES, BACKUPS, REPLICA, RECOVERED = "synapse-files", "synapse-backups", "synapse-backups-dr", "synapse-recovered"
DR_FILES, DR_RECOVERED = "synapse-files-dr", "synapse-recovered-dr"


@dataclass(frozen=True)
class Installation:
    """Synapse and its backups, on servers that somebody else started and stops."""

    postgres: PostgresServer
    primary: S3Server | CephGateway
    replica: S3Server | CephGateway
    synapse: Synapse
    login: DatabaseLogin
    """The application's own."""
    barrier: DatabaseLogin
    dump: DatabaseLogin
    replication: DatabaseLogin
    scratch: DatabaseLogin
    keyring: Path
    backups: str
    replica_backups: str
    recovered: str
    dr_postgres: PostgresServer
    dr_files: str
    dr_configuration: Path

    @classmethod
    def make(
        cls,
        directory: Path,
        *,
        postgres: PostgresServer,
        primary: S3Server | CephGateway,
        replica: S3Server | CephGateway,
        suffix: str = "",
        scale: float = 1.0,
        dr_postgres: PostgresServer | None = None,
    ) -> Self:
        """Create the buckets, seed Synapse, run `grants.sql`, write a keyring below `directory`.

        The second site is an empty bucket beside the replica, a path where nothing is yet, and `dr_postgres`; without
        one a failover would bring its database to the server that it leaves. `suffix` keeps several installations on
        the same servers apart.
        """
        synapse = Synapse(
            postgres.superuser,
            primary.client(),
            primary.create_bucket(FILES + suffix),
            directory / "configuration",
            name="synapse" + suffix,
        )
        login = synapse.seed(scale=scale)
        barrier, dump, replication, scratch = grant(synapse.database)
        keyring = directory / "keyring.json"
        Keyring.create(keyring)
        made = cls(
            postgres=postgres,
            primary=primary,
            replica=replica,
            synapse=synapse,
            login=login,
            barrier=barrier,
            dump=dump,
            replication=replication,
            scratch=scratch,
            keyring=keyring,
            backups=primary.create_bucket(BACKUPS + suffix),
            replica_backups=replica.create_bucket(REPLICA + suffix),
            recovered=primary.create_bucket(RECOVERED + suffix),
            dr_postgres=dr_postgres or postgres,
            dr_files=replica.create_bucket(DR_FILES + suffix),
            dr_configuration=directory / "configuration-dr",
        )
        if isinstance(replica, S3Server):  # Ceph's gateway has no Route 53 beside it
            made.name_home()
        made.settle()
        return made

    def settle(self) -> None:
        """Wait until the store's second is over, so that a backup made now is of exactly what is there now.

        Stores tell whole seconds, and what is deleted within the second of a consistency point is still in its backup.
        """
        objects = self.application().objects
        changed = objects.clock()
        deadline = time.monotonic() + SETTLED_WITHIN
        while objects.clock() <= changed:
            if time.monotonic() > deadline:
                raise BackupError("The object store's clock stands still.", mend="Look at its log.")
            time.sleep(POLL_SECONDS)

    def name_home(self, plan: DisasterPlan | None = None) -> None:
        """Lead the name that users know to the first site, in Route 53: on the replica's server, which outlives home.

        A zone that another installation on that server made is taken as it is.
        """
        plan = plan or load_plan()
        service, home = plan.switches.service, next(iter(plan.sites.values()))
        dns = self.dns()
        found = dns.list_hosted_zones_by_name(DNSName=service.zone)["HostedZones"]
        zone = next((each["Id"] for each in found if each["Name"] == service.zone), None)
        if zone is None:
            made = dns.create_hosted_zone(Name=service.zone, CallerReference=secrets.token_hex(8))
            zone = made["HostedZone"]["Id"]
        record = {
            "Name": service.name,
            "Type": "CNAME",
            "TTL": int(service.ttl.total_seconds()),
            "ResourceRecords": [{"Value": home.service_record}],
        }
        dns.change_resource_record_sets(
            HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": record}]}
        )

    def dns(self) -> Any:
        """A client of the sandbox's Route 53."""
        return dns_client(self.replica.session(), endpoint_url=self.replica.endpoint_url)

    def application(self) -> Application:
        """What is backed up, as the engine takes it."""
        return Application(
            barrier=self.barrier,
            dump=self.dump,
            replication=self.replication,
            objects=self._bucket(self.primary, self.synapse.bucket),
            configuration=Configuration(self.synapse.configuration),
        )

    def service(self, directory: Path) -> SynapseService:
        """Synapse as a live application, not started yet; its log is in `directory`."""
        return SynapseService(
            directory,
            database=self.login,
            bucket=self._bucket(self.primary, self.synapse.bucket),
            configuration=self.synapse.configuration,
        )

    def catalog(self) -> Catalog:
        """The backups in the primary bucket."""
        return Catalog(self._bucket(self.primary, self.backups), Keyring.load(self.keyring))

    def replica_catalog(self) -> Catalog:
        """The backups in the bucket of the second region."""
        return Catalog(self._bucket(self.replica, self.replica_backups), Keyring.load(self.keyring))

    def connections(self) -> dict[str, dict[str, object]]:
        """Airflow's connections, as `AIRFLOW_CONN_*` takes them; the same ids as in `airflow_settings.yaml`."""
        return {
            "synapse_database_barrier": _postgres(self.barrier),
            "synapse_database_dump": _postgres(self.dump),
            "synapse_database_replication": _postgres(self.replication),
            "synapse_database_scratch": _postgres(self.scratch),
            "synapse_objects": _aws(self.primary, self.synapse.bucket),
            "synapse_backups_primary": _aws(self.primary, self.backups),
            "synapse_backups_replica": _aws(self.replica, self.replica_backups),
            "synapse_recovery_objects": _aws(self.primary, self.recovered),
            "synapse_live_database": _postgres(self.postgres.superuser),
            "synapse_live_objects": _aws(self.primary, self.synapse.bucket),
            "synapse_configuration": {"conn_type": "git", "host": str(self.synapse.configuration)},
            "synapse_home_database": _postgres(self.postgres.superuser),
            "synapse_home_objects": _aws(self.primary, self.synapse.bucket),
            "synapse_home_configuration": {"conn_type": "git", "host": str(self.synapse.configuration)},
            "synapse_dr_database": _postgres(self.dr_postgres.superuser),
            "synapse_dr_objects": _aws(self.replica, self.dr_files),
            "synapse_dr_configuration": {"conn_type": "git", "host": str(self.dr_configuration)},
            "synapse_dns": _aws(self.replica),
        }

    def drill_connections(self) -> dict[str, dict[str, object]]:
        """The places of a drill in the second region, in the stead of those of the first: made when this is called.

        A login of `dr_postgres` that may create databases and nothing else, and a bucket beside the replica.
        """
        login = replace(self.dr_postgres.superuser, user="synapse_drill", password=secrets.token_urlsafe(24))
        with self.dr_postgres.superuser.connect(application_name="sandbox", autocommit=True) as session:
            session.execute(
                sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                    sql.Identifier(login.user), sql.Literal(login.password)
                )
            )
        return {
            "synapse_database_scratch": _postgres(login),
            "synapse_recovery_objects": _aws(self.replica, self.replica.create_bucket(DR_RECOVERED)),
        }

    def variables(self) -> dict[str, str]:
        """What the engine reads from the environment."""
        # Not in Airflow's home, which only root may pass: PostgreSQL is started below it as somebody else.
        return {KEYRING_VARIABLE: str(self.keyring), SCRATCH_VARIABLE: str(self.keyring.with_name("scratch"))}

    def break_glass(self) -> dict[str, str]:
        """The variables with which the command line reaches the backups and a server to restore to."""
        credentials = self.primary.session().get_credentials()
        assert credentials is not None  # noqa: S101 - the sandbox's sessions are made with a key
        server = self.postgres.superuser
        certificate = self.primary.certificate if isinstance(self.primary, CephGateway) else None
        return {
            **({"AWS_CA_BUNDLE": str(certificate)} if certificate else {}),
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_ENDPOINT_URL": self.primary.endpoint_url,
            "AWS_REGION": self.primary.region,
            **self.variables(),
            **server.environment(),
        }

    @staticmethod
    def _bucket(server: S3Server | CephGateway, name: str) -> Bucket:
        return Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)


def grant(database: DatabaseLogin) -> tuple[DatabaseLogin, ...]:
    """Run `grants.sql` in the database and give its logins passwords; those of an earlier run are replaced.

    Returns the barrier's login, the dump's, the replication's, and one that may create scratch databases and nothing
    else.
    """
    logins = tuple(
        replace(database, user=f"synapse_backup_{name}", password=secrets.token_urlsafe(24))
        for name in ("barrier", "dump", "replication", "scratch")
    )
    with database.connect(application_name="sandbox", autocommit=True) as session:
        session.execute(GRANTS.read_bytes())
        with suppress(psycopg.errors.DuplicateObject):
            session.execute("CREATE ROLE synapse_backup_scratch LOGIN CREATEDB")
        for login in logins:
            session.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login.user), sql.Literal(login.password))
            )
    return (*logins[:3], logins[3].with_database("postgres"))


def _postgres(login: DatabaseLogin) -> dict[str, object]:
    return {
        "conn_type": "postgres",
        "host": login.host,
        "port": login.port,
        "login": login.user,
        "password": login.password,
        "schema": login.dbname,
    }


def _aws(server: S3Server | CephGateway, bucket: str | None = None) -> dict[str, object]:
    credentials = server.session().get_credentials()
    assert credentials is not None  # noqa: S101 - the sandbox's sessions are made with a key
    return {
        "conn_type": "aws",
        "login": credentials.access_key,
        "password": credentials.secret_key,
        "extra": {
            "region_name": server.region,
            "endpoint_url": server.endpoint_url,
            **({"service_config": {"s3": {"bucket_name": bucket}}} if bucket else {}),
        },
    }
