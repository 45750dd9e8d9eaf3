"""The engine's part of a drill, at three sizes of the sandbox's Synapse: the forecast beside what it took.

    python -m benchmarks.drill [--quick]

On Ceph's gateway, as the others. One drill of the middle size says how fast this place is; the forecasts of all three
are made of that and of the bytes in the bucket. `--quick` is a tenth of the sizes; its figures are not written.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.benchmark import FULL_BYTES, benchmark
from benchmarks.measured import Cost, run
from benchmarks.place import PROJECT
from benchmarks.results import Result, out
from include.backup.increment import make_increment
from include.backup.snapshot import make_snapshot
from include.disaster.forecast import Forecast, Measured, Speeds, forecast
from include.disaster.isolation import drill_places, erase, stamp
from include.disaster.route import Route, plan_route
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.plan import Target
from include.repository.layout import BackupId
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import Installation
from include.sandbox.life import Life
from include.sandbox.postgres import PostgresServer

SCALES = (1.0, 0.2, 3.0)
MEASURED = 1.0
"""The size of the drill that the speeds are of: it comes first, and once more."""
TRANSACTIONS = 1000
POLICY = load_policy()
PER_CENT = 100

# What the task restore_from_backup does, in a process of its own, so that its memory is its own.
DRILL = """
import json, os
from pathlib import Path
import boto3
from include.disaster.isolation import drill_places
from include.disaster.route import go, reopen_route
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.sources.postgres.login import DatabaseLogin

told = json.loads(os.environ["DRILL"])
session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
def bucket(name):
    return Bucket(session, name, region=told["region"], endpoint_url=told["endpoint_url"])
catalog = Catalog(bucket(told["backups"]), Keyring.load(Path(told["keyring"])))
root, policy = Path(told["root"]), load_policy()
server = DatabaseLogin(**told["server"])
places = drill_places(told["run"], server=server, bucket=bucket(told["recovered"]), root=root)
route = reopen_route(told["route"], catalog, policy)
facts = go(route, catalog, policy, places=places, scratch=root / "scratch", expected=root / "expected.json")
Path(told["result"]).write_text(json.dumps(facts["phases"]))
"""


@dataclass(frozen=True)
class Drilled:
    """One drill: what was forecast of its phases, what they took in seconds, and what the process cost."""

    forecast: Forecast
    took: dict[str, float]
    cost: Cost

    @property
    def seconds(self) -> float:
        """What it took."""
        return sum(self.took.values())

    @property
    def expected(self) -> float:
        """What was forecast of the same phases: the rest is Airflow's, and the validations'."""
        return sum(seconds for phase, seconds in self.forecast.seconds.items() if phase in self.took)


def main() -> None:
    """Run everything."""
    benchmark("python -m benchmarks.drill", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, _: int) -> list[Result]:
    share = raw_bytes / FULL_BYTES
    with ExitStack() as servers:
        out.print("Starting PostgreSQL and Ceph's gateway ...")
        postgres = servers.enter_context(PostgresServer(directory / "postgres"))
        store = servers.enter_context(CephGateway(directory / "ceph"))
        speeds, results = Speeds(), []
        for scale in SCALES:  # one after the other: who is made last has the logins' passwords
            installation = _installation(directory, postgres, store, scale, share)
            if scale == MEASURED:
                speeds = _speeds(_drill(installation, speeds))
            results += _results(scale, _drill(installation, speeds))
        return results


def _speeds(drilled: Drilled) -> Speeds:
    amounts = drilled.forecast.amounts
    return Speeds.measured(
        Measured(phase, amount, drilled.took[phase]) for phase, amount in amounts.items() if phase in drilled.took
    )


def _installation(
    directory: Path, postgres: PostgresServer, store: CephGateway, scale: float, share: float
) -> Installation:
    """A Synapse of that size with a base, and a window behind it in which every message was changed."""
    own = directory / f"scale-{scale:g}"
    own.mkdir(mode=0o711)
    out.print(f"scale {scale:g}: loading ...")
    made = Installation.make(
        own,
        postgres=postgres,
        primary=store,
        replica=store,
        suffix=f"-{scale:g}".replace(".", "-"),
        scale=scale * share,
    )
    scratch = own / "scratch"
    scratch.mkdir(mode=0o711)
    application = made.application()
    for type_, make in (("snapshot", make_snapshot), ("incremental", make_increment)):
        make(
            BackupId(type_, datetime.now(UTC), manual=True),
            slot=None,
            application=application,
            catalog=made.catalog(),
            policy=POLICY,
            scratch=scratch,
        )
        if type_ == "snapshot":
            with Life(made.synapse.database, application.objects.client, application.objects.name, pause=0.0) as life:
                life.wait_for(round(TRANSACTIONS * scale * share), within=600)
            with made.synapse.database.connect(application_name="benchmarks", autocommit=True) as session:
                session.execute("UPDATE messages SET tokens = tokens + 1")
            made.settle()
    with postgres.superuser.connect(application_name="benchmarks", autocommit=True) as session:
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        session.execute("CHECKPOINT")
    return made


def _drill(made: Installation, speeds: Speeds) -> Drilled:
    root = made.keyring.parent
    stamped = stamp(datetime.now(UTC))
    catalog = made.catalog()
    route = plan_route(catalog, Target.parse("latest"), POLICY, scratch=root / "scratch")
    assert route.recovery is not None
    told = forecast(route.recovery, speeds)
    result = root / "result.json"
    environment = {"PATH": os.environ["PATH"], "DRILL": json.dumps(_told(made, stamped, route, result))}
    cost = run([sys.executable, "-c", DRILL], environment=environment, directory=PROJECT, log=root / "run.log")
    store = made.primary
    bucket = Bucket(store.session(), made.recovered, region=store.region, endpoint_url=store.endpoint_url)
    erase(drill_places(stamped, server=made.scratch, bucket=bucket, root=root), root)
    drilled = Drilled(told, json.loads(result.read_text()), cost)
    for phase, amount in told.amounts.items():
        if phase in drilled.took:
            took, expected = drilled.took[phase], told.seconds[phase]
            out.print(f"    {phase:14} {amount / 1e6:8.1f} MB {took:6.2f} s, forecast {expected:6.2f} s")
    return drilled


def _told(made: Installation, stamped: str, route: Route, result: Path) -> dict[str, object]:
    credentials = made.primary.session().get_credentials()
    assert credentials is not None
    return {
        "access_key": credentials.access_key,
        "secret_key": credentials.secret_key,
        "region": made.primary.region,
        "endpoint_url": made.primary.endpoint_url,
        "backups": made.backups,
        "recovered": made.recovered,
        "keyring": str(made.keyring),
        "root": str(made.keyring.parent),
        "server": vars(made.scratch),
        "run": stamped,
        "route": route.to_json(),
        "result": str(result),
    }


def _results(scale: float, drilled: Drilled) -> list[Result]:
    amounts = drilled.forecast.amounts
    off = round((drilled.expected / drilled.seconds - 1) * PER_CENT)
    conditions = (
        f"{os.cpu_count()} cores shared with both servers, Linux {platform.release().split('-')[0]}, Ceph's gateway on "
        f"the same machine; a base of {amounts['unpack'] / 1e6:.0f} MB, {amounts['replay'] / 1e6:.0f} MB of log, "
        f"{amounts['application_state']} objects; speeds of one drill of the size {MEASURED:g}"
    )
    out.print(
        f"  scale {scale:g}: {drilled.seconds:.1f} s, forecast {drilled.expected:.1f} s ({off:+} %), "
        f"{drilled.cost.memory / 1e6:.0f} MB"
    )
    return [
        Result(
            f"drill.wall.{scale:g}",
            round(drilled.seconds, 1),
            "s",
            "the forecast",
            round(drilled.seconds / drilled.expected, 3),
            conditions,
        ),
        Result(f"drill.memory.{scale:g}", round(drilled.cost.memory / 1e6), "MB", None, None, conditions),
    ]


if __name__ == "__main__":
    main()
