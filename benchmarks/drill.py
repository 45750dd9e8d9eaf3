"""The last part of `make bench`: a drill at three sizes of the sandbox's Synapse, the forecast beside what it took.

    python -m benchmarks.drill [--quick]

Everything that the runbook's tasks call, from planning to the application in health, from the replica's bucket, by a
login that may create databases and nothing else; then all of it is erased. Ceph's gateway plays both regions.

The forecast is made before anything is fetched: once as before the first drill, by what is built in, once by what the
drill of another size has taken, as in an installation. `--quick` is a tenth of the sizes; its figures are not written.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.benchmark import FULL_BYTES, benchmark
from benchmarks.drill_step import DATA, PHASES_FILE, RESTORE, SERVICE, STATE
from benchmarks.measured import Cost, run
from benchmarks.place import PROJECT
from benchmarks.results import Result, out
from include.backup.increment import make_increment
from include.backup.replicate import catch_up
from include.backup.snapshot import make_snapshot
from include.disaster.forecast import SIDE_BY_SIDE, Forecast, Measured, Speeds, forecast
from include.disaster.isolation import directory as directory_of
from include.disaster.isolation import drill_places, erase, stamp
from include.disaster.route import plan_route
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.plan import Target
from include.repository.layout import BackupId
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.life import Life
from include.sandbox.postgres import PostgresServer

SCALES = (0.3, 1.5, 5.0)
TRANSACTIONS = 1000
"""That somebody makes in the window behind the base, at the size 1."""
POLICY = load_policy()
_SHARED = "the recovered cluster's server is the restore's own"


@dataclass(frozen=True)
class Drilled:
    """One drill: what was forecast before it, and what it took: each phase, all of it, and erasing it, in seconds.

    `memory` is the most that the processes of a step had at once, by step; of the two side by side it is both together.
    """

    first: Forecast
    later: Forecast
    took: dict[str, float]
    seconds: float
    memory: dict[str, int]
    erased: float

    def records(self) -> list[Measured]:
        """What the next forecast is made of, as the report of a drill keeps it."""
        amounts = self.first.amounts
        return [Measured(phase, amounts[phase], seconds) for phase, seconds in self.took.items() if phase in amounts]


def main() -> None:
    """Run everything."""
    benchmark("python -m benchmarks.drill", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, _: int) -> list[Result]:
    share = raw_bytes / FULL_BYTES
    with ExitStack() as servers:
        out.print("Starting Ceph's gateway, and a PostgreSQL for each size ...")
        store = servers.enter_context(CephGateway(directory / "ceph"))
        made = {}
        for scale in SCALES:  # each on a server of its own: a base is of a whole cluster
            postgres = servers.enter_context(PostgresServer(directory / f"postgres-{scale:g}"))
            made[scale] = _installation(directory / f"scale-{scale:g}", postgres, store, scale, share)
        smallest, *larger = SCALES
        drilled, results = _drill(made[smallest], smallest, Speeds()), dict[float, list[Result]]()
        for before, scale in zip(SCALES, (*larger, smallest), strict=True):
            drilled = _drill(made[scale], scale, Speeds.measured(drilled.records()))
            results[scale] = _results(scale, before, drilled)
        return [result for scale in SCALES for result in results[scale]]


def _installation(own: Path, postgres: PostgresServer, store: CephGateway, scale: float, share: float) -> Installation:
    """A Synapse of that size with a base, and a window behind it in which every message changed; both replicated."""
    own.mkdir(mode=0o711)
    out.print(f"scale {scale:g}: loading ...")
    suffix = f"-{scale:g}".replace(".", "-")
    made = Installation.make(own, postgres=postgres, primary=store, replica=store, suffix=suffix, scale=scale * share)
    scratch = own / "scratch"
    scratch.mkdir(mode=0o711)
    application = made.application()
    for type_, make in (("snapshot", make_snapshot), ("incremental", make_increment)):
        backup = BackupId(type_, datetime.now(UTC), manual=True)
        make(backup, slot=None, application=application, catalog=made.catalog(), policy=POLICY, scratch=scratch)
        if type_ == "snapshot":
            with Life(made.synapse.database, application.objects.client, application.objects.name, pause=0.0) as life:
                life.wait_for(round(TRANSACTIONS * scale * share), within=600)
            with made.synapse.database.connect(application_name="benchmarks", autocommit=True) as session:
                session.execute("UPDATE messages SET tokens = tokens + 1")
            made.settle()
    catch_up(application=None, primary=made.catalog(), replica=made.replica_catalog(), policy=POLICY, everything=False)
    with postgres.superuser.connect(application_name="benchmarks", autocommit=True) as session:
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        session.execute("CHECKPOINT")  # no drill pays for what was written before it
    return made


def _drill(made: Installation, scale: float, speeds: Speeds) -> Drilled:
    root, stamped = made.keyring.parent, stamp(datetime.now(UTC), secrets.token_hex())
    scratch = root / directory_of(stamped)
    began = time.monotonic()
    route = plan_route(made.replica_catalog(), Target.parse("latest"), POLICY, scratch=root / "scratch")
    first, later = forecast(route.way, Speeds()), forecast(route.way, speeds)
    told = _told(made, stamped, scratch) | {"route": route.to_json()}
    restore = _step(RESTORE, told, root)
    took: dict[str, float] = json.loads((scratch / PHASES_FILE).read_text())
    with ThreadPoolExecutor() as pool:  # as in the runbook
        beside = dict(zip(SIDE_BY_SIDE, pool.map(lambda step: _step(step, told, root), SIDE_BY_SIDE), strict=True))
    service = _step(SERVICE, told, root)
    seconds = time.monotonic() - began
    took |= {DATA: beside[DATA].wall, STATE: beside[STATE].wall, SERVICE: service.wall}
    alone = sum(each for phase, each in took.items() if phase not in SIDE_BY_SIDE)
    took["steps"] = seconds - alone - max(each.wall for each in beside.values())
    store, ended = made.primary, time.monotonic()
    bucket = Bucket(store.session(), made.recovered, region=store.region, endpoint_url=store.endpoint_url)
    erase(drill_places(stamped, server=made.scratch, bucket=bucket, root=root), root)
    memory = {
        "restore": restore.memory,
        "data_and_state": sum(each.memory for each in beside.values()),
        "service": service.memory,
    }
    drilled = Drilled(first, later, took, seconds, memory, time.monotonic() - ended)
    out.print(f"  scale {scale:g}:")
    for phase, amount in first.amounts.items():
        forecasts = f"{first.seconds[phase]:6.1f} {later.seconds[phase]:6.1f}"
        out.print(f"    {phase:17} {amount:13,} {took[phase]:6.1f} s, forecasts {forecasts}")
    return drilled


def _step(step: str, told: dict[str, Any], root: Path) -> Cost:
    """What the task of that name does, in a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "BENCHMARK": json.dumps(told)}
    argv = (sys.executable, "-m", "benchmarks.drill_step", step)
    return run(argv, environment=environment, directory=PROJECT, log=root / f"{step}.log")


def _told(made: Installation, stamped: str, scratch: Path) -> dict[str, Any]:
    store = made.replica
    credentials = store.session().get_credentials()
    assert credentials is not None
    return {
        "access_key": credentials.access_key,
        "secret_key": credentials.secret_key,
        "region": store.region,
        "endpoint_url": store.endpoint_url,
        "backups": made.replica_backups,
        "recovered": made.recovered,
        "keyring": str(made.keyring),
        "root": str(made.keyring.parent),
        "scratch": str(scratch),
        "server": asdict(made.scratch),
        "run": stamped,
    }


def _results(scale: float, before: float, drilled: Drilled) -> list[Result]:
    """Seconds beside both forecasts, a ratio above 1 being a forecast that was too long; memory; what erasing took."""
    amounts, seconds = drilled.first.amounts, drilled.seconds
    # Nobody waits for Airflow here, which the first guess counts; after a drill the steps are what that one needed.
    unforeseen = drilled.first.total - drilled.first.seconds["steps"]
    conditions = (
        f"{os.cpu_count()} cores shared with both servers, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, Ceph's gateway on the same machine for both regions, no Airflow; a "
        f"base of {amounts['unpack'] / 1e6:.0f} MB, {amounts['replay'] / 1e6:.0f} MB of log, "
        f"{amounts['application_state']:,} objects; from planning to the application in health"
    )
    later = drilled.later.total
    out.print(f"    {'all':17} {'':13} {seconds:6.1f} s, forecasts {unforeseen:6.1f} {later:6.1f}")
    ratio = "forecast / measured"
    return [
        Result(
            f"drill.wall.{scale:g}",
            round(seconds, 1),
            "s",
            f"{ratio}, after a drill of the size {before:g}",
            round(later / seconds, 3),
            conditions,
        ),
        Result(
            f"drill.wall.{scale:g}",
            round(seconds, 1),
            "s",
            f"{ratio}, before the first drill",
            round(unforeseen / seconds, 3),
            f"{conditions}; what Airflow would add is left out of the forecast",
        ),
        *(
            Result(f"drill.memory.{step}.{scale:g}", round(each / 1e6), "MB", None, None, f"{conditions}; {_SHARED}")
            for step, each in drilled.memory.items()
        ),
        Result(f"drill.erased.{scale:g}", round(drilled.erased, 1), "s", None, None, conditions),
    ]


if __name__ == "__main__":
    main()
