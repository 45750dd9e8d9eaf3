"""A rotation of ten thousand data keys: one more wrap of each, proved; and a day on which nothing is to be done.

    python -m benchmarks.rotation [--quick]

On Ceph's gateway, as the others; `--quick` is a tenth, once, and its figures are not written.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.benchmark import benchmark
from benchmarks.measured import Cost, run
from benchmarks.place import PROJECT
from benchmarks.results import Result, out
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.repository.envelopes import create_data_key
from include.repository.layout import new_attempt, new_pack_id
from include.sandbox.ceph import CephGateway

BYTES_A_DATA_KEY = 100_000
"""What `--quick` shortens is given in bytes: ten thousand data keys of a gigabyte."""
FILLERS = 16

# Each phase in a process of its own, so that its memory is its own.
PHASE = """
import json, os, sys
from pathlib import Path
import boto3
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.rotation import make_keys, prove_all, wrap_all

told = json.loads(os.environ["ROTATION"])
session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
bucket = Bucket(session, told["bucket"], region=told["region"], endpoint_url=told["endpoint_url"])
path, phase = Path(told["keyring"]), sys.argv[1]
if phase == "wrap":
    make_keys(path, ["kek"], load_policy().keys)
done = (prove_all if phase == "prove" else wrap_all)(bucket, Keyring.load(path))
done.require(bucket)
assert done.data_keys == told["data_keys"], done
assert done.wraps == (0 if phase == "nothing" else told["data_keys"]), done
"""
PHASES = ("wrap", "prove", "nothing")


def main() -> None:
    """Run it."""
    benchmark("python -m benchmarks.rotation", str(__doc__), _measure)


def _measure(directory: Path, raw_bytes: int, rounds: int) -> list[Result]:
    few, many = raw_bytes // BYTES_A_DATA_KEY // 10, raw_bytes // BYTES_A_DATA_KEY
    costs: dict[tuple[str, int], list[Cost]] = {}
    with CephGateway(directory / "ceph") as server:
        for number in range(rounds):
            for data_keys in (few, many):
                out.print(f"{data_keys:,} data keys, round {number + 1} of {rounds} ...")
                for phase, cost in _rotation(directory / f"{number}-{data_keys}", server, data_keys).items():
                    costs.setdefault((phase, data_keys), []).append(cost)
    conditions = f"{os.cpu_count()} cores, Ceph's gateway, {rounds} rounds"
    results = []
    for (phase, data_keys), each in costs.items():
        wall, memory = (statistics.median(taken) for taken in ([c.wall for c in each], [c.memory / 1e6 for c in each]))
        name = f"rotation.{phase}.{data_keys}"
        results += [
            Result(f"{name}.wall", round(wall, 2), "s", None, None, conditions),
            Result(f"{name}.memory", round(memory, 1), "MB", None, None, conditions),
        ]
    return results


def _rotation(directory: Path, server: CephGateway, data_keys: int) -> dict[str, Cost]:
    directory.mkdir()
    path, name = directory / "keyring.json", server.create_bucket(f"rotation-{new_attempt()}")
    bucket = Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)
    create = partial(create_data_key, bucket, Keyring.create(path))
    with ThreadPoolExecutor(FILLERS) as pool:
        list(pool.map(lambda _: create(owner=new_pack_id(), attempt=new_attempt()), range(data_keys)))
    credentials = server.session().get_credentials()
    assert credentials is not None
    told = {
        "access_key": credentials.access_key,
        "secret_key": credentials.secret_key,
        "region": server.region,
        "endpoint_url": server.endpoint_url,
        "bucket": name,
        "keyring": str(path),
        "data_keys": data_keys,
    }
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "ROTATION": json.dumps(told)}
    return {
        phase: run(
            [sys.executable, "-c", PHASE, phase],
            environment=environment,
            directory=PROJECT,
            log=directory / f"{phase}.log",
        )
        for phase in PHASES
    }


if __name__ == "__main__":
    main()
