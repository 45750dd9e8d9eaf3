"""Archives on real servers: made of a verified full, restored alone and through Glacier, shredded (R3.3, R8.1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string
from typer.testing import CliRunner, Result

from include.backup.archive import NothingToArchive, make_archive
from include.backup.verify import check_integrity, prove_integrity, prove_sizes
from include.cli.__main__ import app
from include.operators.archive import ReplicateArchives
from include.operators.cold import ApplyLifecycle, ReportCold, RetrieveFromCold
from include.operators.run import Surroundings
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, ObjectCold, ObjectMissing
from include.policy import load_policy
from include.policy.loader import DEFAULT
from include.recovery.opened import OpenedBackup
from include.repository import cold
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY
from include.repository.holds import hold
from include.repository.layout import BackupId, envelope_prefix
from include.repository.manifest import Manifest
from include.repository.references import data_keys, references
from include.repository.replica import Replica
from include.repository.shredding import ArchiveShredded, NotShreddable, shred
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server
from include.sources.postgres.login import DatabaseLogin

POLICY = load_policy()
CLASSES = ("financial", "personal", "operational")
TABLES = {
    "financial": {"public.invoices", "public.subscriptions"},
    "operational": {"public.system_settings", "public.feature_flags"},
}
MONTH, TENTH = datetime.now(UTC), timedelta(seconds=0.1)


def archive_of(name: str, month: datetime = MONTH) -> BackupId:
    return BackupId.archive(name, month)


@pytest.fixture(scope="module")
def verified(catalog: Catalog, manifest: Manifest, sandbox_directory: Path) -> Manifest:
    prove_integrity(catalog, manifest.backup, POLICY, scratch=sandbox_directory)
    return manifest


@pytest.fixture(scope="module")
def archives(catalog: Catalog, verified: Manifest, sandbox_directory: Path) -> dict[str, Manifest]:
    return {
        name: make_archive(archive_of(name), catalog=catalog, policy=POLICY, scratch=sandbox_directory)
        for name in CLASSES
    }


@pytest.fixture(scope="module")
def frozen(archives: dict[str, Manifest], catalog: Catalog, s3_primary: S3Server) -> Catalog:
    """A bucket with nothing but the archives in it, and all that they name in Glacier."""
    bucket, source = s3_primary.create_bucket("frozen-archives"), catalog.bucket
    made = Catalog(
        Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url),
        catalog.keyring,
    )
    for manifest in archives.values():
        freeze(catalog, made, manifest)
        for owner, attempt in data_keys(manifest):
            for key in source.keys(envelope_prefix(owner, attempt)):
                made.bucket.put(key, source.read(key))
        made.bucket.put(manifest.home, source.read(manifest.home))
    return made


@pytest.fixture
def cli(installation: Installation, frozen: Catalog, tmp_path: Path) -> Iterator[Cli]:
    """The command line over the frozen bucket, looking every tenth of a second; databases that it makes are dropped."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(DEFAULT.read_text().replace("looked_at_every: 5 min", "looked_at_every: 100 ms"))
    server = installation.postgres.superuser
    before = databases(server)
    yield Cli({**installation.break_glass(), "BACKUP_POLICY": str(policy)}, frozen.bucket.name)
    for name in databases(server) - before:
        ask(server, f'DROP DATABASE "{name}" WITH (FORCE)')


class Cli:
    def __init__(self, environment: dict[str, str], bucket: str) -> None:
        self.environment, self._bucket = environment, bucket

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["--bucket", self._bucket, *arguments], env=self.environment)


def freeze(source: Catalog, into: Catalog, manifest: Manifest) -> None:
    """Put all that an archive names into Glacier, as the lifecycle does after 90 days."""
    for each in references(manifest):
        into.bucket.client.copy_object(
            Bucket=into.bucket.name,
            Key=each.key,
            CopySource={"Bucket": source.bucket.name, "Key": each.key},
            StorageClass="GLACIER",
        )


def ask(login: DatabaseLogin, query: str) -> list[tuple]:
    with login.connect(application_name="test", autocommit=True) as session:
        answer = session.execute(query.encode())
        return answer.fetchall() if answer.description else []


def databases(server: DatabaseLogin) -> set[str]:
    return {name for (name,) in ask(server, "SELECT datname FROM pg_database")}


def rows(login: DatabaseLogin, table: str) -> list[tuple]:
    return ask(login, f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} AS t")


# Made


@pytest.mark.requirement("R8.1")
def test_each_class_has_its_own_share_and_nothing_is_in_two(archives: dict[str, Manifest], verified: Manifest) -> None:
    own = {
        name: {each.name for each in manifest.artifacts if each.component not in ("structure",)}
        for name, manifest in archives.items()
    }
    whole = {each.name for each in verified.artifacts if each.component != "structure"}

    assert set.union(*own.values()) == whole - {"config/api_keys.tar"}
    assert sum(map(len, own.values())) == len(set.union(*own.values()))
    assert {each.retention_class for manifest in archives.values() for each in manifest.packs} == {"personal"}
    assert sum(manifest.database.rows or 0 for manifest in archives.values()) == verified.database.rows
    assert archives["personal"].objects.objects == verified.objects.objects


@pytest.mark.requirement("R8.1")
def test_no_secret_is_archived(archives: dict[str, Manifest]) -> None:
    names = {each.name for manifest in archives.values() for each in manifest.artifacts}
    assert not {"database/globals.sql", "database/settings.json", "config/api_keys.tar"} & names


@pytest.mark.requirement("R8.1")
def test_an_inventory_tells_of_its_own_class_only(archives: dict[str, Manifest], catalog: Catalog) -> None:
    for name, tables in TABLES.items():
        opened = OpenedBackup(catalog, archives[name], policy=POLICY.pipeline, progress=Progress("test"))
        told = json.loads(b"".join(opened.read(INVENTORY)))
        assert set(told["tables"]) == tables
        assert told["large_objects"] is None


@pytest.mark.requirement("R7.1", "R8.1")
def test_everything_of_an_archive_lies_below_it_and_is_under_its_one_key(archives: dict[str, Manifest]) -> None:
    for name, manifest in archives.items():
        assert data_keys(manifest) == {(manifest.id, manifest.attempt)}
        below = f"archive/{name}/{MONTH:%Y-%m}/{manifest.id}/{manifest.attempt}/"
        assert all(each.key.startswith(below) for each in references(manifest))
        assert manifest.slot is not None
        assert (manifest.slot.start.day, manifest.slot.end.day, manifest.slot.start.month) == (1, 1, MONTH.month)


@pytest.mark.requirement("R8.1")
def test_what_is_stored_is_tagged(archives: dict[str, Manifest], catalog: Catalog) -> None:
    for name, manifest in archives.items():
        for each in references(manifest):
            assert catalog.bucket.tags(each.key) == {"retention-class": name, "month": f"{MONTH:%Y-%m}"}


@pytest.mark.requirement("R4.5")
def test_an_archive_is_read_back_as_any_backup(
    archives: dict[str, Manifest], catalog: Catalog, sandbox_directory: Path
) -> None:
    for manifest in archives.values():
        prove_integrity(catalog, manifest.backup, POLICY, scratch=sandbox_directory)
        prove_sizes(catalog, manifest.backup, POLICY, scratch=sandbox_directory)
        assert catalog.verification(manifest).state == "verified"


def test_an_archive_that_is_there_is_not_made_again(
    archives: dict[str, Manifest], catalog: Catalog, tmp_path: Path
) -> None:
    before = list(catalog.bucket.versions(""))
    again = make_archive(archive_of("financial"), catalog=catalog, policy=POLICY, scratch=tmp_path)
    assert again == archives["financial"]
    assert list(catalog.bucket.versions("")) == before


@pytest.mark.requirement("R8.1")
def test_a_month_without_a_verified_full_is_refused_by_name(
    catalog: Catalog, verified: Manifest, tmp_path: Path
) -> None:
    before = archive_of("financial", datetime(2020, 2, 29, tzinfo=UTC))
    with pytest.raises(NothingToArchive, match=r"No full backup of 2020-02 in .* is verified, and none is there"):
        make_archive(before, catalog=catalog, policy=POLICY, scratch=tmp_path)
    with pytest.raises(NothingToArchive, match="'bills' is no retention class"):
        make_archive(archive_of("bills"), catalog=catalog, policy=POLICY, scratch=tmp_path)
    assert [key for key in catalog.bucket.keys("keys/archive-") if "2020" in key or "bills" in key] == []


# Restored alone, through Glacier


@pytest.mark.requirement("R3.3", "R8.1")
@pytest.mark.parametrize("name", CLASSES)
def test_an_archive_of_each_class_comes_back_through_glacier(
    cli: Cli, frozen: Catalog, archives: dict[str, Manifest], installation: Installation, tmp_path: Path, *, name: str
) -> None:
    manifest = archives[name]
    live, server = installation.synapse.database, installation.postgres.superuser
    into, checkout = installation.primary.create_bucket(f"thawed-{name}"), tmp_path / "checkout"
    if name == CLASSES[0]:
        with pytest.raises(ObjectCold, match=r"it is in Glacier\. .*thaw"):
            frozen.bucket.read(next(references(manifest)).key)
        for other in CLASSES[1:]:  # they come meanwhile
            assert not cold.look(frozen.bucket, archives[other]).is_readable
            assert cli("thaw", archives[other].id, "--no-wait").exit_code == 0
    places = {
        "financial": ("--database", "thawed"),
        "personal": ("--database", "thawed", "--objects", into),
        "operational": ("--database", "thawed", "--configuration", str(checkout)),
    }[name]
    done = cli("restore", manifest.id, *places, "--json")

    assert done.exit_code == 0, done.output
    assert (": 0 of " in done.stderr) == (name == CLASSES[0])
    assert "are on their way, 0 are cold" in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["database"]["tables"], facts["database"]["rows"]) == (
        manifest.database.tables,
        manifest.database.rows,
    )
    for table in TABLES.get(name, {"public.users", "public.messages"}):
        assert rows(server.with_database("thawed"), table) == rows(live, table)
    assert ("objects" in facts) == (name == "personal")
    if name == "personal":
        target = installation._bucket(installation.primary, into)
        source = installation.application().objects
        assert {key: target.read(key) for key in target.keys("")} == {key: source.read(key) for key in source.keys("")}
    if name == "operational":
        assert (checkout / "environment/production.env").exists()
        assert not (checkout / "secrets").exists()


def test_what_an_archive_has_nothing_of_is_refused_in_words(cli: Cli, archives: dict[str, Manifest]) -> None:
    done = cli("restore", archives["financial"].id, "--objects", "anywhere")
    assert done.exit_code != 0
    assert "archive-financial" in str(done.exception)
    assert "has no objects" in str(done.exception)


@pytest.mark.requirement("R3.3")
def test_a_retrieval_that_is_under_way_is_waited_for_and_not_asked_for_twice(
    frozen: Catalog, catalog: Catalog, archives: dict[str, Manifest]
) -> None:
    manifest = archives["financial"]
    freeze(catalog, frozen, manifest)  # anew: it may have been retrieved
    total = len(list(references(manifest)))
    first = cold.request(frozen.bucket, manifest, POLICY)
    second = cold.request(frozen.bucket, manifest, POLICY, "Expedited")
    looks: list[cold.Retrieval] = []
    quick = POLICY.model_copy(
        update={
            "storage": POLICY.storage.model_copy(
                update={"cold": POLICY.storage.cold.model_copy(update={"looked_at_every": TENTH})}
            )
        }
    )
    cold.wait(frozen.bucket, manifest, quick, report=looks.append)

    assert (first.coming, second.coming, first.cold) == (total, total, 0)
    assert not looks[0].is_readable
    assert looks[-1].is_readable
    assert looks[-1].retrieved == total
    assert looks[-1].waiting_bytes == 0


@pytest.mark.requirement("R3.3", "R6.2")
def test_what_is_cold_is_told_with_what_it_costs(
    cli: Cli, frozen: Catalog, archives: dict[str, Manifest], catalog: Catalog
) -> None:
    told = {each.archive: each for each in cold.report(frozen, POLICY)}
    warm = {each.archive: each for each in cold.report(catalog, POLICY)}

    for manifest in archives.values():
        each = told[manifest.id]
        assert each.cold_bytes == each.bytes == manifest.stored_bytes
        assert each.usd["Expedited"] > each.usd["Standard"] > each.usd["Bulk"] > 0
        assert (warm[manifest.id].cold_objects, warm[manifest.id].usd["Standard"]) == (0, 0)
    assert "archive-personal" in cli("cold").stdout


@pytest.fixture
def airflow(installation: Installation, frozen: Catalog, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has: the connections, with the frozen bucket as the primary's, and the engine's variables."""
    connections = installation.connections()
    connections["synapse_backups_primary"]["extra"] |= {  # type: ignore[operator]
        "service_config": {"s3": {"bucket_name": frozen.bucket.name}}
    }
    given = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(each) for name, each in connections.items()}
    for name, value in {**cli.environment, **given}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.requirement("R3.3")
def test_a_task_waits_for_glacier_in_the_triggerer_and_holds_no_worker(
    airflow: None, frozen: Catalog, catalog: Catalog, archives: dict[str, Manifest]
) -> None:
    """The step, its trigger and the step again, each as Airflow calls it; between them only what it keeps."""
    manifest = archives["operational"]
    freeze(catalog, frozen, manifest)
    asked = {"archive": manifest.id, "tier": "Expedited"}
    context: Any = {"ti": SimpleNamespace(xcom_pull=lambda task_ids: asked)}
    with pytest.raises(TaskDeferred) as deferred:
        RetrieveFromCold(task_id="retrieve").execute(context)
    path, arguments = deferred.value.trigger.serialize()
    event = asyncio.run(anext(aiter(import_string(path)(**arguments).run())))
    task = RetrieveFromCold(task_id="retrieve")
    told = getattr(task, deferred.value.method_name)(context, event.payload)

    assert told == {"retrieved": len(list(references(manifest))), "warm": 0}
    assert "can be read; 0 are on their way" in event.payload["stands"]


@pytest.mark.requirement("R3.3")
def test_the_daily_steps_mend_both_buckets_and_tell_what_is_cold(
    airflow: None, installation: Installation, frozen: Catalog, archives: dict[str, Manifest]
) -> None:
    nothing: Any = {}
    first = ApplyLifecycle(task_id="apply_lifecycle").execute(nothing)["mended"]
    second = ApplyLifecycle(task_id="apply_lifecycle").execute(nothing)["mended"]
    told = ReportCold(task_id="report_cold").execute(nothing)

    assert set(first) == {frozen.bucket.name, installation.replica_backups}
    assert all(lines for lines in first.values())
    assert not any(second.values())
    assert told["archives"] == len(archives)
    assert told["cold_bytes"] == sum(manifest.stored_bytes for manifest in archives.values())
    assert told["within_seconds"]["Standard"] == 5 * 3600


@pytest.mark.requirement("R3.2", "R8.1")
def test_archives_are_in_both_regions_and_what_was_shredded_in_one_is_not_brought_back(
    catalog: Catalog, archives: dict[str, Manifest], s3_replica: S3Server, tmp_path: Path
) -> None:
    name = s3_replica.create_bucket("replica-of-archives")
    bucket = Bucket(s3_replica.session(), name, region=s3_replica.region, endpoint_url=s3_replica.endpoint_url)
    there = Catalog(bucket, catalog.keyring)
    gone = archives["financial"]
    with Progress("test") as progress:
        replica = Replica(catalog, there, POLICY, progress=progress)
        replica.bring().require()
        for manifest in archives.values():
            check_integrity(there, manifest.backup, POLICY, scratch=tmp_path)
            assert bucket.tags(manifest.artifacts[0].segments[0].key) == manifest.backup.tags
        shred(there, gone.backup, by="somebody", because="asked", now=datetime.now(UTC))
        again = replica.bring(everything=True)

    again.require()
    assert not list(bucket.keys(f"keys/{gone.id}/"))
    assert list(catalog.bucket.keys(f"keys/{gone.id}/"))


@pytest.mark.requirement("R3.2")
def test_the_step_brings_archives_to_the_second_region(
    airflow: None, installation: Installation, archives: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = installation.connections()["synapse_backups_primary"]
    monkeypatch.setenv("AIRFLOW_CONN_SYNAPSE_BACKUPS_PRIMARY", json.dumps(primary))
    nothing: Any = {}
    ReplicateArchives(task_id="replicate").execute(nothing)
    there = Surroundings().replica

    for manifest in archives.values():
        assert there.get(manifest.backup) == manifest


# Shredded


@pytest.mark.requirement("R8.1")
def test_a_classes_month_is_shredded_and_nothing_else_is(
    cli: Cli, archives: dict[str, Manifest], frozen: Catalog, catalog: Catalog
) -> None:
    gone = archives["personal"]
    kept = {each.key: each for each in frozen.bucket.versions("") if not each.key.startswith(f"keys/{gone.id}/")}
    other = ("--replica-bucket", catalog.bucket.name)
    done = cli(*other, "shred", gone.id, "--because", "the data subject asked", "--both")
    after = {each.key: each for each in frozen.bucket.versions("")}

    assert done.exit_code == 0, done.output
    assert done.stdout.count("1 wraps of its key are destroyed") == 2
    assert not list(catalog.bucket.keys(f"keys/{gone.id}/"))
    listed = {each["id"]: each["shredded"] for each in json.loads(cli("list", "--json").stdout)}
    assert listed == {manifest.id: manifest.id == gone.id for manifest in archives.values()}
    assert not [key for key in after if key.startswith(f"keys/{gone.id}/")]
    assert {key: after[key] for key in kept} == kept
    assert set(after) - set(kept) == {f"shredded/{gone.id}.json"}
    with pytest.raises(ObjectMissing):
        opened = OpenedBackup(frozen, gone, policy=POLICY.pipeline, progress=Progress("test"))
        opened.check(gone.artifacts[0])
    refused = cli("restore", gone.id, "--database", "gone")
    assert isinstance(refused.exception, ArchiveShredded)
    assert "the data subject asked" in refused.exception.what
    for name in ("financial", "operational"):
        cold.request(frozen.bucket, archives[name], POLICY)
        assert cli("restore", archives[name].id, "--database", f"left_{name}").exit_code == 0


def test_a_shredding_that_was_cut_is_ended_and_keeps_its_first_words(
    catalog: Catalog, archives: dict[str, Manifest], s3_primary: S3Server
) -> None:
    archive = archives["operational"].backup
    now = datetime.now(UTC)

    class Cut(Bucket):
        def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
            raise KeyboardInterrupt

    bucket = Cut(
        s3_primary.session(), catalog.bucket.name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url
    )
    with pytest.raises(KeyboardInterrupt):
        shred(Catalog(bucket, catalog.keyring), archive, by="one", because="first", now=now)
    assert list(catalog.bucket.keys(f"keys/{archive}/"))
    assert shred(catalog, archive, by="two", because="second", now=now) == 1
    with pytest.raises(ArchiveShredded, match="by one: first"):
        prove_integrity(catalog, archive, POLICY, scratch=Path("/nowhere"))


def test_who_may_only_write_cannot_pretend_a_shredding(
    catalog: Catalog, archives: dict[str, Manifest], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    archive = archives["financial"].backup
    catalog.bucket.put(f"shredded/{archive}.json", b"{}")
    prove_integrity(catalog, archive, POLICY, scratch=tmp_path)
    assert "is not believed" in caplog.text


def test_what_is_held_or_no_archive_is_not_shredded(
    catalog: Catalog, archives: dict[str, Manifest], verified: Manifest
) -> None:
    now = datetime.now(UTC)
    with pytest.raises(NotShreddable, match="no archive"):
        shred(catalog, verified.backup, by="x", because="y", now=now)
    hold(catalog, archives["financial"].backup, by="the court", because="a case")
    with pytest.raises(NotShreddable, match="held by the court: a case"):
        shred(catalog, archives["financial"].backup, by="x", because="y", now=now)
    assert list(catalog.bucket.keys(f"keys/{archives['financial'].id}/"))
