"""The second region: whole before it shows a backup, caught up after anything, and enough to restore from alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.retries.standard import ExponentialBackoff

from include.backup.full import make_full_backup
from include.backup.replicate import catch_up, waiting
from include.backup.risk import told_at_risk
from include.backup.snapshot import make_snapshot
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, StoreAway
from include.repository.catalog import Catalog
from include.repository.holds import hold
from include.repository.layout import VERIFICATION, BackupId
from include.repository.ledger import Gap, declare
from include.repository.lsn import Lsn
from include.repository.manifest import Manifest
from include.repository.references import envelope_prefixes, references
from include.repository.replica import BUCKET_REPLICATES, NotReplicated, RuleCoversManifests
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.slots import ANCHOR
from tests.damage import flip
from tests.windows import POLICY, Chain, fresh_bucket

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("REPLICA_SEED", "20261128"))


@pytest.fixture(scope="module")
def regions(sandbox_directory: Path) -> Iterator[tuple[S3Server, S3Server]]:
    """Two that are stopped here, which nobody else uses."""
    directory = sandbox_directory / "replica"
    directory.mkdir(mode=0o711)
    with (
        S3Server(directory / "primary", region="eu-west-1") as primary,
        S3Server(directory / "replica", region="us-east-1") as replica,
    ):
        yield primary, replica


@pytest.fixture(scope="module")
def installation(sandbox_directory: Path, regions: tuple[S3Server, S3Server]) -> Iterator[Installation]:
    directory = sandbox_directory / "replica"
    with PostgresServer(directory / "postgres", major=18, durable=False) as server:
        yield Installation.make(directory, postgres=server, primary=regions[0], replica=regions[1], scale=0.02)


@pytest.fixture
def chain(installation: Installation, tmp_path: Path) -> Iterator[Chain]:
    """A chain of its own in fresh buckets of both regions."""
    keyring = Keyring.load(installation.keyring)
    primary, replica = (fresh_bucket(server) for server in (installation.primary, installation.replica))
    made = Chain(installation, Catalog(primary, keyring), tmp_path, replica=Catalog(replica, keyring))
    yield made
    made.sql(f"SELECT pg_drop_replication_slot('{ANCHOR}') FROM pg_replication_slots")


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is given up at once."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.001)


def manual(kind: str) -> BackupId:
    return BackupId(kind, datetime.now(UTC), manual=True)  # type: ignore[arg-type]


def full(chain: Chain) -> Manifest:
    """A real full backup."""
    return make_full_backup(
        manual("full"),
        slot=None,
        application=chain.application,
        catalog=chain.catalog,
        policy=POLICY,
        scratch=chain.scratch,
    )


def repaired(chain: Chain) -> dict[str, object]:
    return catch_up(
        application=chain.application, primary=chain.catalog, replica=chain.replica, policy=POLICY, everything=True
    )


def stored(bucket: Bucket) -> dict[str, tuple[int, str]]:
    """Everything that is in a bucket, with size and ETag."""
    return {each.key: (each.size, each.etag) for each in bucket.versions("") if each.latest and not each.deleted}


def must_be_whole(replica: Catalog) -> list[str]:
    """What a replica shows it has: the ids of its backups, each with all that it names."""
    there = stored(replica.bucket)
    manifests = [entry.manifest for entry in replica.entries() if entry.manifest]
    for manifest in manifests:
        for reference in references(manifest):
            assert there[reference.key][0] == reference.stored_bytes
        for prefix in envelope_prefixes(manifest):
            assert any(key.startswith(prefix) for key in there)
    return [manifest.id for manifest in manifests]


@pytest.mark.requirement("R3.2", "R5.5")
def test_all_that_manifests_name_is_there_and_a_second_look_copies_nothing(chain: Chain) -> None:
    base = chain.base()
    made = [full(chain), chain.increment()]
    chain.write(2)
    assert made[1].wal is not None
    beyond = chain.collect(made[1].wal.end_lsn)  # as the stream does
    facts = chain.replicate(made[1])
    assert must_be_whole(chain.replica) == [base.id, *(each.id for each in made)]
    assert stored(chain.replica.bucket) == stored(chain.catalog.bucket)
    assert {chain.archive().key_of(file) for file in beyond.files} <= stored(chain.replica.bucket).keys()
    assert facts["backups"] == 3
    assert facts["sampled"] >= 5
    assert 0 < facts["lag_seconds"] < 60
    assert chain.slot_at() == made[1].wal.end_lsn
    again = chain.replicate(made[1])
    assert (again["backups"], again["objects"], again["bytes"], again["mended"]) == (0, 0, 0, 0)
    assert [each.version_id for each in chain.replica.bucket.versions("")] == [
        each.version_id for each in {each.key: each for each in chain.replica.bucket.versions("")}.values()
    ]  # one version of each: nothing was written twice


@pytest.mark.requirement("R3.2")
def test_records_gaps_and_holds_go_along(chain: Chain) -> None:
    base = chain.base()
    made = chain.increment()
    assert base.wal is not None
    chain.catalog.bucket.create(f"{VERIFICATION}{made.id}/20261122T000512.123456Z-sizes-00000000.json", b"{}")
    gap = long_ago(base)
    declare(chain.catalog.bucket, chain.catalog.keyring, gap)
    held = hold(chain.catalog, made.backup, by="somebody", because="a case")
    chain.replicate(made)
    assert stored(chain.replica.bucket) == stored(chain.catalog.bucket)
    assert {gap.home, held.home} <= set(stored(chain.replica.bucket))


def long_ago(base: Manifest) -> Gap:
    """A gap before all that there is."""
    return Gap(
        system_identifier=base.database.system_identifier,
        timeline=1,
        start_lsn=Lsn(0),
        end_lsn=Lsn(1 << 24),
        after=datetime(2026, 1, 1, tzinfo=UTC),
        before=datetime(2026, 1, 2, tzinfo=UTC),
        because="before all of this",
        declared=datetime(2026, 1, 2, tzinfo=UTC),
    )


@pytest.mark.requirement("R3.2")
def test_what_misses_one_artifact_is_not_shown_and_keeps_no_other_back(chain: Chain) -> None:
    chain.base()
    first = full(chain)
    lost = first.artifact("database/chat_history.pgdump").segments[0].key
    content = chain.catalog.bucket.read(lost)
    for version in list(chain.catalog.bucket.versions(lost)):
        chain.catalog.bucket.delete_version(lost, version.version_id)
    second = chain.increment()
    with pytest.raises(NotReplicated, match=lost):
        chain.replicate(second)
    assert first.id not in must_be_whole(chain.replica)
    assert second.id in must_be_whole(chain.replica)
    assert second.wal is not None
    assert chain.slot_at() == second.wal.end_lsn
    chain.catalog.bucket.put(lost, content[:-1] + b"\0")  # of the right size, and not what was backed up
    with pytest.raises(NotReplicated, match=lost):
        chain.replicate(second)
    assert first.id not in must_be_whole(chain.replica)
    assert lost not in stored(chain.replica.bucket)
    chain.catalog.bucket.put(lost, content)
    chain.replicate(second)
    assert first.id in must_be_whole(chain.replica)


@pytest.mark.requirement("R3.2", "R5.5")
def test_a_window_that_cannot_be_brought_keeps_the_slot_at_its_beginning(chain: Chain) -> None:
    chain.base()
    damaged = chain.increment()
    after = chain.increment()
    assert damaged.wal is not None
    assert after.wal is not None
    key = chain.archive().key_of(damaged.wal.files[-1])
    content = chain.catalog.bucket.read(key)
    flip(chain.catalog.bucket, key)
    with pytest.raises(NotReplicated, match=key):
        chain.replicate(after)
    assert after.id in must_be_whole(chain.replica)
    assert chain.slot_at() <= damaged.wal.start_lsn
    chain.catalog.bucket.put(key, content)
    chain.replicate(after)
    assert chain.slot_at() == after.wal.end_lsn


@pytest.mark.requirement("R3.2", "R5.5")
def test_while_the_replica_is_away_the_slot_stays_and_the_next_run_catches_up(
    chain: Chain, no_backoff: None, regions: tuple[S3Server, S3Server]
) -> None:
    base = chain.base()
    chain.replicate(base)
    at = chain.slot_at()
    regions[1].stop()
    try:
        first = chain.increment()
        with pytest.raises(StoreAway, match=chain.replica.bucket.name):
            chain.replicate(first)
        assert chain.slot_at() == at
        second = chain.increment()  # which begins where the first ended, wherever the slot is
    finally:
        regions[1].start()
    chain.whole(base, first, second)
    chain.replicate(second)
    assert must_be_whole(chain.replica) == [base.id, first.id, second.id]
    assert second.wal is not None
    assert chain.slot_at() == second.wal.end_lsn > at


@pytest.mark.requirement("R3.2")
def test_a_copy_that_was_tampered_with_is_found_and_mended(chain: Chain) -> None:
    chain.base()
    made = full(chain)
    chain.replicate(made)
    assert repaired(chain)["mended"] == 0
    segment, pack = made.artifacts[0].segments[0].key, f"packs/{made.packs[0].id}"
    flip(chain.replica.bucket, segment)
    chain.replica.bucket.put(pack, b"cut")
    hidden = made.artifacts[1].segments[0].key
    chain.replica.bucket.hide(hidden)
    facts = repaired(chain)
    assert (facts["mended"], facts["objects"]) == (2, 3)
    assert stored(chain.replica.bucket) == stored(chain.catalog.bucket)
    assert repaired(chain)["objects"] == 0


def settings(installation: Installation, directory: Path) -> dict[str, str]:
    """The command line's variables, with a profile for the second region's other credentials."""
    credentials = installation.replica.session().get_credentials()
    assert credentials is not None
    file = directory / "credentials"
    file.write_text(
        f"[second-region]\naws_access_key_id = {credentials.access_key}\n"
        f"aws_secret_access_key = {credentials.secret_key}\n"
    )
    return {
        **installation.break_glass(),
        "PATH": os.environ["PATH"],
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
        "REPLICA_PROFILE": "second-region",
        "REPLICA_ENDPOINT_URL": installation.replica.endpoint_url,
    }


def command(chain: Chain, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "include.cli", "--bucket", chain.catalog.bucket.name),
        *("--replica-bucket", chain.replica.bucket.name, *arguments),
    ]


@pytest.mark.requirement("R3.2")
def test_killed_in_the_middle_it_shows_nothing_that_is_not_whole_and_is_caught_up(
    chain: Chain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chain.base()
    made = [full(chain), full(chain), chain.increment()]
    pieces = sum(len(list(references(each))) for each in made)
    environment = settings(chain.installation, tmp_path_factory.mktemp("aws"))
    share = random.Random(SEED).uniform(0.2, 0.8)
    print(f"REPLICA_SEED={SEED}: at {share:.2f} of it")
    with subprocess.Popen(command(chain, "replicate"), env=environment, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while len(stored(chain.replica.bucket)) < share * pieces and process.poll() is None:
            assert time.monotonic() < deadline
        process.kill()
    assert len(must_be_whole(chain.replica)) < len(made) + 1
    with ThreadPoolExecutor(2) as pool:  # at once: no harm
        for done in [pool.submit(chain.replicate, made[-1]) for _ in range(2)]:
            assert done.result()["lag_seconds"] > 0
    repair = subprocess.run(
        command(chain, "replicate", "--repair", "--json"), env=environment, cwd=ROOT, check=True, capture_output=True
    )
    assert json.loads(repair.stdout)["objects"] == 0
    assert stored(chain.replica.bucket) == stored(chain.catalog.bucket)
    assert {each.id for each in made} <= set(must_be_whole(chain.replica))


class Alone:
    """The command line on a machine that knows the second region only."""

    def __init__(self, chain: Chain, directory: Path) -> None:
        region = chain.installation.replica
        self.environment = {
            **settings(chain.installation, directory),
            "AWS_PROFILE": "second-region",
            "AWS_ENDPOINT_URL": region.endpoint_url,
            "AWS_REGION": region.region,
        }
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del self.environment[name]
        self._bucket = chain.replica.bucket.name

    def restore(self, *arguments: str) -> dict[str, dict[str, object]]:
        """What a restore says of itself."""
        command = [sys.executable, "-m", "include.cli", "--bucket", self._bucket, "restore", "--json", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)


@pytest.fixture
def alone(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    yield Alone(chain, tmp_path_factory.mktemp("alone"))
    chain.sql("DROP DATABASE IF EXISTS alone")


@pytest.mark.requirement("R3.2", "R5.1", "R5.3")
def test_with_the_primary_gone_the_replica_says_what_is_lost_and_brings_everything_back(
    chain: Chain,
    alone: Alone,
    regions: tuple[S3Server, S3Server],
    tmp_path_factory: pytest.TempPathFactory,
    no_backoff: None,
) -> None:
    made = full(chain)
    chain.replicate(made)
    target = chain.installation.replica.create_bucket("restored-alone")
    checkout = tmp_path_factory.mktemp("restored") / "configuration"
    regions[0].stop()
    try:
        with pytest.raises(StoreAway) as away:
            chain.catalog.bucket.clock()
        told = told_at_risk(away.value, chain.replica, POLICY)
        assert made.id in told.what
        assert chain.replica.bucket.name in told.mend
        facts = alone.restore(*("latest", "--database", "alone", "--objects", target, "--configuration", str(checkout)))
    finally:
        regions[0].start()
    assert facts["database"]["rows"] == made.database.rows
    assert facts["objects"]["objects"] == made.objects.objects
    assert (checkout / ".git").exists()


@pytest.mark.soak
@pytest.mark.requirement("R3.2", "R5.1", "R5.3")
def test_with_the_primary_gone_any_moment_comes_back(
    chain: Chain, alone: Alone, regions: tuple[S3Server, S3Server], tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_snapshot(
        manual("snapshot"),
        slot=None,
        application=chain.application,
        catalog=chain.catalog,
        policy=POLICY,
        scratch=chain.scratch,
    )
    login = chain.installation.synapse.database
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute("INSERT INTO public.system_settings (key, value) VALUES ('kept in the replica', 'true')")
        row = session.execute("SELECT clock_timestamp()").fetchone()
        session.execute("INSERT INTO public.system_settings (key, value) VALUES ('kept too late', 'true')")
    assert row is not None
    chain.replicate(chain.increment())
    scratch = tmp_path_factory.mktemp("scratch")
    scratch.chmod(0o711)
    alone.environment["BACKUP_SCRATCH"] = str(scratch)
    regions[0].stop()
    try:
        alone.restore("--to", row[0].isoformat(), "--database", "alone")
    finally:
        regions[0].start()
    with login.with_database("alone").connect(application_name="test") as session:
        found = session.execute("SELECT key FROM public.system_settings WHERE key LIKE 'kept%'").fetchall()
    assert found == [("kept in the replica",)]


def replicating(source: Bucket, target: Bucket, *prefixes: str) -> None:
    """Let the store replicate what begins so."""
    rules = [
        {
            "ID": prefix or "all",
            "Priority": number,
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": f"arn:aws:s3:::{target.name}"},
        }
        for number, prefix in enumerate(prefixes)
    ]
    source.client.put_bucket_replication(
        Bucket=source.name,
        ReplicationConfiguration={"Role": "arn:aws:iam::000000000000:role/replication", "Rules": rules},  # type: ignore[typeddict-item]
    )


@pytest.mark.requirement("R3.2")
def test_where_the_bucket_replicates_it_is_awaited_and_what_it_failed_at_is_copied(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ministack replicates between buckets of one server, at once."""
    source = chain.catalog.bucket
    chain.replica = Catalog(fresh_bucket(chain.installation.primary), chain.catalog.keyring)
    target = chain.replica.bucket
    replicating(source, target, "")
    with pytest.raises(RuleCoversManifests, match="packs/"):
        waiting(chain.base().backup, chain.catalog, chain.replica, POLICY)
    replicating(source, target, *BUCKET_REPLICATES)
    made = full(chain)
    assert {reference.key for reference in references(made)} <= stored(target).keys()
    assert made.backup.manifest_key not in stored(target)  # it is ours to put there, last
    assert waiting(made.backup, chain.catalog, chain.replica, POLICY) == 0
    target.client.put_bucket_versioning(Bucket=target.name, VersioningConfiguration={"Status": "Suspended"})
    failed = chain.increment()  # into a bucket that takes no replicas
    target.client.put_bucket_versioning(Bucket=target.name, VersioningConfiguration={"Status": "Enabled"})
    assert failed.wal is not None
    keys = [reference.key for reference in references(failed)]
    assert {source.replication_status(key) for key in keys} == {"FAILED"}
    assert waiting(failed.backup, chain.catalog, chain.replica, POLICY) == 0  # there is nothing to wait for
    status = Bucket.replication_status
    monkeypatch.setattr(
        Bucket, "replication_status", lambda self, key: "PENDING" if key == keys[-1] else status(self, key)
    )
    assert waiting(failed.backup, chain.catalog, chain.replica, POLICY) >= len(keys)
    monkeypatch.undo()
    facts = chain.replicate(failed)
    assert facts["objects"] >= len(keys)
    assert {failed.id, made.id} <= set(must_be_whole(chain.replica))
    assert chain.slot_at() == failed.wal.end_lsn
