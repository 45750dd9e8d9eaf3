"""The first part of `make bench`: measures, writes `benchmarks/results.json`, prints it as a table.

    python -m benchmarks [--quick]

`--quick` is a tenth of the data, once: it proves that everything runs, and its figures are not written.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.benchmark import benchmark
from benchmarks.data import WORDS_SHARE
from benchmarks.measured import Cost, run
from benchmarks.overhead import RUNS, airflow_overhead
from benchmarks.place import AWS, PROJECT, RESTORED, SIDES, Place, place, zstd
from benchmarks.results import Result, beside, costs, out
from benchmarks.write_stop import BARRIERS, WRITERS, write_stops
from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import PostgresServer

PERCENT = 100


@dataclass(frozen=True)
class Run:
    """One side's backup and restore, and the bytes in its bucket between the two."""

    backup: Cost
    restore: Cost
    stored: int


def main() -> None:
    """Run everything."""
    benchmark("python -m benchmarks", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, rounds: int) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as servers:
        out.print("Starting PostgreSQL and Ceph's gateway ...")
        postgres = servers.enter_context(PostgresServer(directory / "postgres"))
        store = servers.enter_context(CephGateway(directory / "ceph"))
        for data_set in WORDS_SHARE:
            out.print(f"{data_set}: loading ...")
            with place(directory / data_set, postgres, store, data_set, raw_bytes=raw_bytes) as there:
                runs: dict[str, list[Run]] = {side: [] for side in SIDES}
                for _ in range(rounds):
                    for side in SIDES:
                        runs[side].append(_run(there, store, side, directory))
                conditions = _conditions(there, data_set, rounds)
                results += _compared(runs, data_set, conditions)
                if data_set == next(iter(WORDS_SHARE)):
                    out.print(f"{WRITERS} writers and {BARRIERS} write stops ...")
                    results += _write_stops(there, conditions)
        out.print(f"Airflow, {RUNS} runs ...")
        results.append(_overhead(airflow_overhead(directory / "overhead", postgres, store)))
    return results


def _overhead(seconds: float) -> Result:
    conditions = (
        f"{os.cpu_count()} cores, LocalExecutor, a small Synapse, median of {RUNS} runs of full_backup: a run's length "
        "less the seconds of copying and of reading back; an upper bound"
    )
    return Result("airflow.overhead", round(seconds, 1), "s", None, None, conditions)


def _run(there: Place, store: CephGateway, side: str, directory: Path) -> Run:
    bucket = store.create_bucket(f"run-{os.urandom(6).hex()}")
    client, postgres, log = store.client(), there.installation.postgres.superuser, directory / "run.log"
    with postgres.connect(application_name="benchmarks", autocommit=True) as session:
        session.execute("CHECKPOINT")  # nobody pays for what the one before has written
        command = there.backup(side, bucket)
        backup = run(command.argv, environment=command.environment, directory=PROJECT, log=log)
        versions = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
        stored = [version for page in versions for version in page.get("Versions", [])]
        session.execute("CHECKPOINT")
        command = there.restore(side, bucket)
        restore = run(command.argv, environment=command.environment, directory=PROJECT, log=log)
        session.execute(f"DROP DATABASE {RESTORED} WITH (FORCE)".encode())
    for version in stored:
        client.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
    client.delete_bucket(Bucket=bucket)
    size = sum(version["Size"] for version in stored)
    out.print(
        f"  {side:36} backup {backup.wall:6.1f} s {backup.memory / 1e6:5.0f} MB, "
        f"restore {restore.wall:6.1f} s {restore.memory / 1e6:5.0f} MB, stored {size / 1e6:6.1f} MB"
    )
    return Run(backup, restore, size)


def _compared(runs: dict[str, list[Run]], data_set: str, conditions: str) -> list[Result]:
    return [
        *costs("backup", data_set, {side: [run.backup for run in each] for side, each in runs.items()}, conditions),
        *costs("restore", data_set, {side: [run.restore for run in each] for side, each in runs.items()}, conditions),
        *beside(
            f"stored.{data_set}",
            "MB",
            {side: [run.stored / 1e6 for run in each] for side, each in runs.items()},
            conditions,
        ),
    ]


def _write_stops(there: Place, conditions: str) -> list[Result]:
    stops = [seconds * 1000 for seconds in write_stops(there)]
    shares = statistics.quantiles(stops, n=PERCENT, method="inclusive")
    under = f"{len(stops)} barriers under {WRITERS} pgbench writers; {conditions}"
    return [
        Result(f"write_stop.{name}", round(value, 1), "ms", None, None, under)
        for name, value in (("p50", shares[49]), ("p99", shares[98]), ("max", max(stops)))
    ]


def _conditions(there: Place, data_set: str, rounds: int) -> str:
    aws = subprocess.run([AWS, "--version"], capture_output=True, text=True, check=True).stdout.split()[0]
    compressor = (
        "zstd 1.5" if Path(zstd()).exists() else f"backports.zstd {importlib.metadata.version('backports.zstd')}"
    )
    return (
        f"{os.cpu_count()} cores shared with both servers, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, PostgreSQL {there.installation.postgres.major} (fsync on), "
        f"Ceph's gateway on the same machine, {aws}, {compressor}; {data_set}, {there.raw_bytes / 1e9:.2f} GB "
        f"of rows; median of {rounds}, sides in turn; ours encrypts, and compares digests of every table"
    )


if __name__ == "__main__":
    main()
