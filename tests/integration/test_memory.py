"""A backup and a restore of dumps stay within 300 MB, their whole process trees together, whatever the size (R4.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.measured import Cost, run
from benchmarks.place import OURS, PROJECT, Command, place
from include.backup.verify import check_integrity
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server

RAW_BYTES = 500_000_000
MEMORY_LIMIT = 300_000_000
WINDOW_BYTES = 1 << 30


@pytest.mark.soak
@pytest.mark.requirement("R4.3", "R4.4")
def test_half_a_gigabyte_is_backed_up_and_restored_in_bounded_memory(
    sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server, tmp_path: Path
) -> None:
    """Several dumps of some size at once, most of it in one of them: as many buffers as there will ever be."""
    with place(sandbox_directory / "memory", postgres18, s3_primary, "half-compressible", raw_bytes=RAW_BYTES) as there:
        bucket = s3_primary.create_bucket("memory")
        for command in (there.backup(OURS, bucket), there.restore(OURS, bucket)):
            cost = run(command.argv, environment=command.environment, directory=PROJECT, log=tmp_path / "log")
            print(f"{command.argv[2]}: {cost.memory / 1e6:.0f} MB")
            assert cost.memory <= MEMORY_LIMIT


@pytest.mark.soak
@pytest.mark.requirement("R1.2", "R4.3", "R5.1")
def test_a_window_of_a_gigabyte_is_shipped_in_bounded_memory_and_recovered(
    sandbox_directory: Path, s3_primary: S3Server, tmp_path: Path
) -> None:
    """Of log that compresses to a thirteenth, on a server of its own, whose slots nobody else has."""
    name, policy = s3_primary.create_bucket("window"), load_policy()
    bucket = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)

    def measure(command: Command) -> Cost:
        return run(command.argv, environment=command.environment, directory=PROJECT, log=tmp_path / "log")

    def new(kind: str) -> str:
        return f"{kind}-manual-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"

    with (
        PostgresServer(sandbox_directory / "window-postgres", major=18, durable=False) as server,
        place(sandbox_directory / "window", server, s3_primary, "compressible", raw_bytes=1_000_000) as there,
        there.installation.synapse.database.connect(application_name="test", autocommit=True) as session,
    ):
        session.execute("CREATE TABLE public.entry (n bigint, body text)")
        measure(there.made(new("snapshot"), name))
        [(began,)] = session.execute("SELECT pg_current_wal_insert_lsn()")
        rows = written = 0
        while written < WINDOW_BYTES:
            session.execute(
                "INSERT INTO public.entry SELECT n, repeat(md5(n::text) || md5((-n)::text) || md5((n * n)::text), 9)"
                " FROM generate_series(%s::bigint + 1, %s::bigint + 50000) AS n",
                [rows, rows],
            )
            rows += 50000
            [(written,)] = session.execute("SELECT (pg_current_wal_insert_lsn() - %s::pg_lsn)::bigint", [began])
        backup = new("incremental")
        cost = measure(there.made(backup, name))
        assert cost.memory <= MEMORY_LIMIT

        catalog = Catalog(bucket, Keyring.load(there.installation.keyring))
        [snapshot] = [entry.manifest for entry in catalog.entries("snapshot")]
        increment = catalog.get(BackupId.parse(backup))
        assert snapshot is not None
        assert snapshot.wal is not None
        assert increment.wal is not None
        window, stored = increment.wal, sum(file.stored_bytes for file in increment.wal.files)
        told = f"{written / 1e6:,.0f} MB of log, {stored / 1e6:.0f} MB stored"
        print(f"{told}: {cost.wall:.1f} s, {cost.memory / 1e6:.0f} MB of memory")
        assert window.start_lsn == snapshot.wal.end_lsn
        assert len(window.files) * window.segment_bytes == window.end_lsn - window.start_lsn >= WINDOW_BYTES
        # Every segment reads back, and each record follows on the one before, over both borders.
        check_integrity(catalog, increment.backup, policy, scratch=sandbox_directory)

        recovered = measure(there.restored(name, "--to", backup, "--database=recovered", "--table=public.entry"))
        print(f"recovered in {recovered.wall:.1f} s")
        with server.superuser.with_database("recovered").connect(application_name="test") as there_again:
            found = there_again.execute("SELECT count(*), count(DISTINCT n), max(n) FROM public.entry").fetchone()
        assert found == (rows, rows, rows)
