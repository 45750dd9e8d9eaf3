"""The third part of `make bench`: a backup brought to the second region, beside `aws s3 sync` down and up again.

    python -m benchmarks.replication [--quick]

One store plays both regions: what `aws` could copy inside it, it cannot between two, so it goes over the disk, as it
has to there. Ours compares each object's SHA-256 with the manifest's on its way, and opens a sample. `--quick` is a
tenth of the data, once, and its figures are not written.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.benchmark import benchmark
from benchmarks.measured import Cost, run
from benchmarks.place import AWS, FULL_BACKUP, OURS, PROJECT, Command, Place, place
from benchmarks.results import Result, costs, out
from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import PostgresServer

DATA_SET = "half-compressible"
REPLICATE, SYNC = "replicate", "aws s3 sync, down and up"


def main() -> None:
    """Run everything."""
    benchmark("python -m benchmarks.replication", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, rounds: int) -> list[Result]:
    with (
        PostgresServer(directory / "postgres") as postgres,
        CephGateway(directory / "ceph") as store,
        place(directory / DATA_SET, postgres, store, DATA_SET, raw_bytes=raw_bytes) as there,
    ):
        primary = there.installation.backups
        made = there.backup(OURS, primary)
        run(made.argv, environment=made.environment, directory=PROJECT, log=directory / "run.log")
        stored = _stored(store, primary)
        out.print(f"{FULL_BACKUP}: {stored / 1e6:.1f} MB stored")
        runs: dict[str, list[Cost]] = {REPLICATE: [], SYNC: []}
        for _ in range(rounds):
            for side, each in runs.items():
                replica = store.create_bucket(f"replica-{os.urandom(6).hex()}")
                command = _ours(there, replica) if side == REPLICATE else _sync(there, replica)
                cost = run(command.argv, environment=command.environment, directory=PROJECT, log=directory / "run.log")
                assert _stored(store, replica) == stored, side  # half a copy is no peer
                shutil.rmtree(_beside(there), ignore_errors=True)
                out.print(f"  {side:26} {cost.wall:6.1f} s, CPU {cost.cpu:6.1f} s, {cost.memory / 1e6:5.0f} MB")
                each.append(cost)
        conditions = (
            f"{os.cpu_count()} cores shared with the store, Ceph's gateway on the same machine for both regions; a "
            f"full backup of {there.raw_bytes / 1e9:.2f} GB of rows, {stored / 1e6:.0f} MB stored; median of {rounds}"
        )
        rate = stored / 1e6 / statistics.median(cost.wall for cost in runs[REPLICATE])
        return [
            Result(f"replication.rate.{DATA_SET}", round(rate, 1), "MB/s", None, None, conditions),
            *costs("replication", DATA_SET, runs, conditions),
        ]


def _ours(there: Place, replica: str) -> Command:
    argv = (sys.executable, "-m", "include.cli", f"--bucket={there.installation.backups}")
    return Command((*argv, f"--replica-bucket={replica}", "replicate", "--json"), there.surroundings())


def _sync(there: Place, replica: str) -> Command:
    sync, local = f'"{AWS}" s3 sync --only-show-errors', _beside(there)
    script = f'{sync} s3://{there.installation.backups} "{local}" && {sync} "{local}" s3://{replica}'
    return Command(("bash", "-euo", "pipefail", "-c", script), there.surroundings())


def _beside(there: Place) -> Path:
    return there.directory / "synced"


def _stored(store: CephGateway, bucket: str) -> int:
    versions = store.client().get_paginator("list_object_versions").paginate(Bucket=bucket)
    return sum(version["Size"] for page in versions for version in page.get("Versions", []))


if __name__ == "__main__":
    main()
