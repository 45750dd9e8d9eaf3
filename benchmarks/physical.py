"""The second part of `make bench`: whole clusters beside pgBackRest and the plain pipe, in one store behind TLS.

    python -m benchmarks.physical [--quick]

A round: every side takes a base backup; a gigabyte of log is written; every side takes that; every side brings the
cluster back to the end of it. `--quick` is a tenth of both, once, and its figures are not written.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.benchmark import benchmark
from benchmarks.measured import Cost, run
from benchmarks.place import AWS, PROJECT, Command, Place, place
from benchmarks.results import Result, beside, costs, out
from benchmarks.sides import SETTINGS, Ours, PgBackRest, Pipe, Side, socket_directory
from include.sandbox.ceph import CephGateway
from include.sandbox.postgres import PostgresServer

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

MAJOR = 15
DATA_SET = "half-compressible"
SHARES = 16
"""The log is written in pieces of so many parts of the messages."""


@dataclass
class Measured:
    """The costs of each side, by phase; and of what MB/s are told."""

    sides: list[str]
    phases: dict[str, dict[str, list[Cost]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    stored: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    idle: list[float] = field(default_factory=list)
    cluster_bytes: int = 0
    wal_bytes: int = 0


def main() -> None:
    """Run everything."""
    benchmark("python -m benchmarks.physical", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, rounds: int) -> list[Result]:
    with ExitStack() as servers:
        out.print(f"Starting PostgreSQL {MAJOR} and Ceph's gateway behind TLS ...")
        sockets = socket_directory(directory)
        sockets.mkdir()
        sockets.chmod(0o1777)
        settings = {**SETTINGS, "unix_socket_directories": str(sockets)}
        postgres = servers.enter_context(PostgresServer(directory / "postgres", major=MAJOR, settings=settings))
        store = servers.enter_context(CephGateway(directory / "ceph", tls=True))
        out.print(f"{DATA_SET}: loading ...")
        there = servers.enter_context(place(directory / DATA_SET, postgres, store, DATA_SET, raw_bytes=raw_bytes))
        sides: list[Side] = [kind(there, store, directory) for kind in (Ours, PgBackRest, Pipe)]
        measured = Measured([side.name for side in sides])
        for number in range(rounds):
            turn = sides[number % len(sides) :] + sides[: number % len(sides)]
            _round(turn, f"bench-{number}", directory, raw_bytes, measured)
        return _results(measured, _conditions(there, measured, rounds))


def _round(turn: list[Side], point: str, directory: Path, wal_bytes: int, measured: Measured) -> None:
    """Every side's base, increment and recovery to the restore point `point`."""
    store, server, database = turn[0].store, turn[0].server, turn[0].there.installation.synapse.database

    def measure(side: Side, phase: str, command: Command) -> None:
        cost = run(command.argv, environment=command.environment, directory=PROJECT, log=directory / "run.log")
        measured.phases[phase][side.name].append(cost)
        out.print(f"  {side.name:32} {phase:9} {cost.wall:5.1f} s, CPU {cost.cpu:5.1f} s, {cost.memory / 1e6:4.0f} MB")

    with server.superuser.connect(application_name="benchmarks", autocommit=True) as session:
        row = session.execute("SELECT sum(pg_database_size(oid)) FROM pg_database").fetchone()
        measured.cluster_bytes = int(row[0]) if row else 0
        for side in turn:
            side.begin(store.create_bucket(f"run-{os.urandom(6).hex()}"))
            session.execute("CHECKPOINT")  # nobody pays for what the one before has written
            measure(side, "base", side.base())
            measured.stored[side.name].append(_stored(store, side.bucket) / 1e6)
        for side in turn:
            side.catch_up()
            if isinstance(side, Ours):
                measure(side, "idle", side.increment())
        with database.connect(application_name="benchmarks", autocommit=True) as writing:
            measured.wal_bytes = _write_log(writing, wal_bytes)
        session.execute("SELECT pg_create_restore_point(%s)", [point])
        session.execute("SELECT pg_switch_wal()")
        for side in turn:
            session.execute("CHECKPOINT")
            measure(side, "increment", side.increment())
        for side in turn:
            recovered = directory / "recovered"
            measure(side, "recovery", side.recovery(point, recovered))
            shutil.rmtree(recovered)
        for side in turn:
            side.end()
            _drop(store, side.bucket)
    with database.connect(application_name="benchmarks", autocommit=True) as writing:
        writing.execute("DROP TABLE later")


def _write_log(session: psycopg.Connection[TupleRow], wal_bytes: int) -> int:
    """Write about so much log into a new table `later`, half of it rows, half of it whole pages; returns how much.

    An hour of a busy application looks so: what is new, and what is changed for the first time since a checkpoint.
    """
    session.execute("CREATE TABLE later (LIKE messages)")
    session.execute("CREATE INDEX ON later (id)")
    row = session.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    begin = row[0] if row else None

    def write(until: int, statement: bytes) -> int:
        for share in cycle(range(SHARES)):
            row = session.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", [begin]).fetchone()
            if row and row[0] >= until:
                return int(row[0])
            session.execute(statement, [SHARES, share])
        raise AssertionError

    write(wal_bytes // 2, b"INSERT INTO later SELECT * FROM messages WHERE id %% %s = %s")
    session.execute("CHECKPOINT")
    return write(wal_bytes, b"UPDATE later SET tokens = tokens + 1 WHERE id %% %s = %s")


def _results(measured: Measured, conditions: str) -> list[Result]:
    results: list[Result] = []
    for phase, size in (
        ("base", measured.cluster_bytes),
        ("increment", measured.wal_bytes),
        ("recovery", measured.cluster_bytes + measured.wal_bytes),
    ):
        runs = {side: measured.phases[phase][side] for side in measured.sides}
        rate = size / 1e6 / statistics.median(cost.wall for cost in runs[Ours.name])
        results.append(Result(f"{phase}.rate.{DATA_SET}", round(rate, 1), "MB/s", None, None, conditions))
        results += costs(phase, DATA_SET, runs, conditions)
    stored = {side: measured.stored[side] for side in measured.sides}
    results += beside(f"base.stored.{DATA_SET}", "MB", stored, conditions)
    idle = statistics.median(cost.wall for cost in measured.phases["idle"][Ours.name])
    results.append(Result("increment.idle", round(idle, 1), "s", None, None, f"an hour without a write; {conditions}"))
    return results


def _conditions(there: Place, measured: Measured, rounds: int) -> str:
    said = [
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        for argv in ((PgBackRest.program, "version"), (str(AWS), "--version"))
    ]
    return (
        f"{os.cpu_count()} cores shared with both servers, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, PostgreSQL {there.installation.postgres.major} (fsync on), "
        f"Ceph's gateway with TLS on the same machine, {said[0]} (zst 3, AES-256-CBC, process-max 2, bundles, "
        "asynchronous archiving; what the archiver pushes during its base is not counted), "
        f"{said[1].split()[0]}; {DATA_SET}, a cluster of {measured.cluster_bytes / 1e9:.2f} GB, "
        f"{measured.wal_bytes / 1e9:.2f} GB of log, half of it rows and half "
        f"whole pages; median of {rounds}, sides in turn; recovery: unpack, replay, promote, shut down; the pipe "
        "encrypts nothing, and its log is one archive of tar; our base has digests of every table"
    )


def _stored(store: CephGateway, bucket: str) -> int:
    pages = store.client().get_paginator("list_object_versions").paginate(Bucket=bucket)
    return sum(version["Size"] for page in pages for version in page.get("Versions", []))


def _drop(store: CephGateway, bucket: str) -> None:
    client = store.client()
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for each in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
            client.delete_object(Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])
    client.delete_bucket(Bucket=bucket)


if __name__ == "__main__":
    main()
