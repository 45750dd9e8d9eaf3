"""A backup and its restore stay within 300 MB, their whole process trees together, whatever the size (R4.3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measured import run
from benchmarks.place import OURS, PROJECT, place
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server

RAW_BYTES = 500_000_000
MEMORY_LIMIT = 300_000_000


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
