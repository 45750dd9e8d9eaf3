"""An installation, and a real Airflow that backs it up, for the tests of DAG runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from include.backup.wal_collection import collect_wal, read_log
from include.disaster.plan import load_plan
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId, BackupType
from include.repository.ledger import intervals
from include.repository.lsn import segment_start
from include.repository.manifest import BaseBackup, Manifest
from include.sandbox.airflow import AirflowClient, AirflowServices
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mail
from include.sandbox.synapse import Synapse
from include.sources.postgres.slots import secure_anchor
from tests import manifests

FULL, SNAPSHOT, INCREMENTAL = "full_backup", "snapshot_backup", "incremental_backup"
LIFECYCLE, STREAM, RECOVERY = "storage_lifecycle", "wal_stream", "point_in_time_recovery"
ROTATION, DISASTER = "key_rotation", "disaster_recovery"
CREATE = "execute.create_backup"
RUN_WITHIN = 240.0
SOON = 60.0


@dataclass
class Running:
    """An installation, and the Airflow that backs it up."""

    installation: Installation
    services: AirflowServices
    client: AirflowClient
    catalog: Catalog
    mails: list[Mail]
    ran: dict[str, str] = field(default_factory=dict)

    @property
    def synapse(self) -> Synapse:
        """The application."""
        return self.installation.synapse

    def scheduled(self, dag: str = FULL) -> str:
        """The run of the latest slot, ended well; it is made once."""
        if dag not in self.ran:
            self.client.unpause(dag)
            run = self.client.wait_for_run(dag, "scheduled", within=SOON)
            self.must_end_well(dag, run)
            self.ran[dag] = run
        return self.ran[dag]

    def must_end_well(self, dag: str, run: str) -> None:
        """Wait for a run to be green."""
        assert self.client.wait(dag, run, within=RUN_WITHIN) == "success", self.explain(run, dag)

    def snapshot(self) -> str:
        """The snapshot of the latest slot: it is days ago, and not late before the next one."""
        return self.scheduled(SNAPSHOT)

    def triggered(self, dag: str = FULL, **conf: object) -> str:
        """A manual run, ended well."""
        self.client.unpause(dag)
        run = self.client.trigger(dag, conf=conf)
        self.must_end_well(dag, run)
        return run

    def manifest(self, run: str, dag: str = FULL) -> Manifest:
        """The backup that a run says it made."""
        identity = self.client.xcom(dag, run, CREATE)["id"]
        [found] = [each for each in self.manifests(dag.removesuffix("_backup")) if each.id == identity]  # type: ignore[arg-type]
        return found

    def manifests(self, backup_type: BackupType = "full") -> list[Manifest]:
        """Every committed backup of a type; none of them refused."""
        entries = self.catalog.entries(backup_type)
        assert all(entry.manifest for entry in entries)
        return [entry.manifest for entry in entries if entry.manifest]

    def shipped(self) -> set[str]:
        """Every segment of the log in the bucket."""
        return {key.rpartition("/")[2].split(".")[0] for key in self.catalog.bucket.keys("wal/")}

    def restore(self, manifest: Manifest, scratch: Path) -> None:
        """Bring the whole application back."""
        with Progress("restore", scratch=scratch) as progress:
            opened = OpenedBackup(self.catalog, manifest, policy=load_policy().pipeline, progress=progress)
            name = self.synapse.database.dbname
            restore_database(opened, server=self.synapse.server, name=name, scratch=scratch)
            restore_objects(opened, self.installation.application().objects)
            restore_configuration(opened, self.synapse.configuration)

    def explain(self, run: str, dag: str = FULL) -> str:
        """The errors in the log of each failed task."""
        return "\n".join(
            f"{name} {line}"
            for name, task in self.client.tasks(dag, run).items()
            if task["state"] == "failed" and name != "watcher"
            for line in self.client.log(dag, run, name, try_number=task["try_number"]).splitlines()
            if '"level": "error"' in line
        )


def base_of_then(on: Running, moment: datetime, scratch: Path) -> Manifest:
    """A snapshot in all but its base, which claims to be of `moment`, and where the log is now: as if since then nobody
    had written anything, and nobody had backed it up."""
    application, policy = on.installation.application(), load_policy()
    with application.replication.connect(application_name="test", autocommit=True) as session:
        secure_anchor(session)
    state = read_log(application)
    wal = collect_wal(
        application,
        on.catalog,
        start=segment_start(state.flushed, state.segment_bytes),
        since=moment,
        attempt=manifests.ATTEMPT,
        policy=policy,
        scratch=scratch,
        progress=Progress("base"),
    )
    made = manifests.make(
        id=str(BackupId("snapshot", moment, manual=True)),
        type="snapshot",
        artifacts=(),
        packs=(),
        base=BaseBackup(start_lsn=state.flushed, stop_lsn=state.flushed, started=moment, stopped=moment),
        wal=wal,
    )
    server = {"system_identifier": state.server.system_identifier, "timeline": state.server.timeline}
    point = {"time": moment, "objects_as_of": application.objects.clock()}
    claimed = made.model_copy(
        update={
            "database": made.database.model_copy(update=server),
            "consistency_point": made.consistency_point.model_copy(update=point),
        }
    )
    return manifests.commit(on.catalog, claimed)


def ledger(on: Running, since: datetime, until: datetime) -> dict[datetime, tuple[str, str | None]]:
    """What became of each hour, by its end: its state, and the backup that has it."""
    entries = [*on.catalog.entries("snapshot"), *on.catalog.entries("incremental")]
    found = intervals(
        load_policy().backups.incremental.schedule,
        since,
        until,
        manifests=[entry.manifest for entry in entries if entry.manifest],
    )
    return {each.end: (each.state, each.backup) for each in found}


def active(installation: Installation) -> str:
    """What the name that users know leads to."""
    service, dns = load_plan().switches.service, installation.dns()
    [zone] = [each for each in dns.list_hosted_zones()["HostedZones"] if each["Name"] == service.zone]
    records = dns.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
    [record] = [each for each in records if each["Name"] == service.name]
    return str(record["ResourceRecords"][0]["Value"])


def seconds_of(run: dict[str, Any]) -> float:
    """How long a run took, from when it was to begin."""
    ended, began = (datetime.fromisoformat(run[name]) for name in ("end_date", "start_date"))
    return (ended - began) / timedelta(seconds=1)
