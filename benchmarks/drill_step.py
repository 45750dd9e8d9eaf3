"""One step of a drill, as its task takes it, in a process of its own that can be measured.

    python -m benchmarks.drill_step STEP

Where everything is comes as JSON in `BENCHMARK`, which `benchmarks.drill` writes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3

from include.disaster.isolation import drill_places
from include.disaster.route import go, reopen_route
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.places import Places
from include.recovery.validation.recovered import EXPECTED, Expected, Recovered
from include.recovery.validation.validation import Validation
from include.repository.catalog import Catalog
from include.sources.postgres.login import DatabaseLogin

RESTORE, DATA, STATE, SERVICE = "restore_from_backup", "data_consistency", "application_state", "service_health"
PHASES_FILE = "phases.json"
POLICY = load_policy()


def main() -> None:
    """Take the step; whatever goes wrong, also a check that does not hold, ends the process with its error."""
    step, told = sys.argv[1], json.loads(os.environ["BENCHMARK"])
    root, scratch = Path(told["root"]), Path(told["scratch"])
    places = drill_places(
        told["run"], server=DatabaseLogin(**told["server"]), bucket=_bucket(told, "recovered"), root=root
    )
    if step == RESTORE:
        catalog = Catalog(_bucket(told, "backups"), Keyring.load(Path(told["keyring"])))
        places.clear()
        scratch.mkdir(mode=0o711, exist_ok=True)
        facts = go(reopen_route(told["route"], catalog, POLICY), catalog, POLICY, places=places, scratch=scratch)
        (scratch / PHASES_FILE).write_text(json.dumps(facts["phases"]))
        return
    looked = _looked(step, places, scratch)
    for line in looked.lines():
        print(line)
    looked.require()


def _looked(step: str, places: Places, scratch: Path) -> Validation:
    """Imported here, as the tasks do it: they wait for Great Expectations, and the restore does not."""
    from include.recovery.validation.service import check_service_health  # noqa: PLC0415

    assert places.server is not None
    assert places.database is not None
    recovered = Recovered(
        expected=Expected.read(scratch / EXPECTED),
        database=places.server.with_database(places.database),
        bucket=places.bucket,
        prefix=places.prefix,
        configuration=places.configuration,
    )
    if step == SERVICE:
        return check_service_health(recovered, POLICY, scratch=scratch)
    from include.recovery.validation.application import check_application_state  # noqa: PLC0415
    from include.recovery.validation.consistency import check_data_consistency  # noqa: PLC0415

    return {DATA: check_data_consistency, STATE: check_application_state}[step](recovered, POLICY)


def _bucket(told: dict[str, Any], name: str) -> Bucket:
    session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
    return Bucket(session, told[name], region=told["region"], endpoint_url=told["endpoint_url"])


if __name__ == "__main__":
    main()
