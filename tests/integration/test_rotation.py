"""A rotation under load and under kills: backups made before, during and after it are read with the new keys (R7.1).

A kill's moment is a share of an undisturbed rotation's time, drawn from a seed; one that fails is replayed by

    BACKUP_KILL_SEED=<seed> pytest -m "" "tests/integration/test_rotation.py"
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from include.backup.full import make_full_backup
from include.backup.verify import check_integrity
from include.pipeline.keys import Keyring
from include.pipeline.kms import KmsKey
from include.pipeline.progress import Progress
from include.policy import load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.envelopes import create_data_key, open_data_key, stored_data_keys
from include.repository.layout import BackupId, new_attempt
from include.repository.manifest import Manifest
from include.repository.rotation import KEY_KINDS, make_keys, prove_all, retire, wrap_all
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server

ROOT = Path(__file__).parents[2]
POLICY = load_policy()
SEED = int(os.environ.get("BACKUP_KILL_SEED") or secrets.randbelow(10**6))
FEW_SEED = int(os.environ.get("BACKUP_KILL_SEED") or 5)
DATA_KEYS = 24
pytestmark = pytest.mark.requirement("R7.1")

# What the DAG's tasks do, in a process of its own.
ROTATION = """
import json, sys
from pathlib import Path
import boto3
from include.pipeline.keyring_file import KeyringBusy
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.repository.rotation import KEY_KINDS, make_keys, wrap_all

told = json.loads(sys.argv[1])
session = boto3.Session(told["access_key"], told["secret_key"], region_name=told["region"])
bucket = Bucket(session, told["bucket"], region=told["region"], endpoint_url=told["endpoint_url"])
path = Path(told["keyring"])
print("begins", flush=True)
sys.stdin.readline()
try:
    make_keys(path, KEY_KINDS, load_policy().keys)
except KeyringBusy:
    sys.exit(5)
wrap_all(bucket, Keyring.load(path)).require(bucket)
print("ends", flush=True)
"""


def make(installation: Installation, catalog: Catalog, day: int, scratch: Path) -> Manifest:
    return make_full_backup(
        BackupId.parse(f"full-202611{day:02}T000000Z"),
        slot=None,
        application=installation.application(),
        catalog=catalog,
        policy=POLICY,
        scratch=scratch,
    )


def test_every_backup_made_before_during_and_after_is_read_without_the_old_key(
    installation: Installation, sandbox_directory: Path, tmp_path: Path
) -> None:
    path = installation.keyring
    before = installation.catalog()
    old = before.keyring.current_kek
    made = [make(installation, before, 1, sandbox_directory)]
    begun, ended = threading.Event(), threading.Event()

    def under_load() -> Manifest:
        begun.set()
        try:
            return make(installation, before, 2, sandbox_directory)  # it keeps the keyring that it began with
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(under_load)
        begun.wait()
        make_keys(path, KEY_KINDS, POLICY.keys)
        while not ended.is_set():
            wrap_all(before.bucket, Keyring.load(path)).require(before.bucket)
        made.append(running.result())
    made.append(make(installation, installation.catalog(), 3, sandbox_directory))
    wrap_all(before.bucket, Keyring.load(path))
    assert prove_all(before.bucket, Keyring.load(path)).refused == ()

    later = POLICY.keys.rotation.after(before.keyring.clock())
    retire(path, old, [before.bucket], POLICY.keys, now=later)
    retire(path, before.keyring.current_signing_key, [], POLICY.keys, now=later)
    after = installation.catalog()
    assert old not in after.keyring.keks
    for manifest in made:
        check_integrity(after, manifest.backup, POLICY, scratch=tmp_path)
    with Progress("restore", scratch=tmp_path) as progress:
        opened = OpenedBackup(after, made[1], policy=POLICY.pipeline, progress=progress)
        restore_configuration(opened, tmp_path / "configuration")
    assert (tmp_path / "configuration" / ".git").is_dir()
    # And in the other direction: a worker that still has the file of before reads what was made after.
    assert open_data_key(before.bucket, before.keyring, owner=made[2].id, attempt=made[2].attempt)


@pytest.mark.requirement("R3.2", "R7.1")
def test_a_backup_whose_keys_are_of_kms_in_two_regions_is_restored_with_either(
    installation: Installation, sandbox_directory: Path, tmp_path: Path
) -> None:
    with ExitStack() as servers:
        regions = {
            name: servers.enter_context(S3Server(sandbox_directory / f"rotation-kms-{name}", region=name))
            for name in ("eu-west-1", "us-east-1")
        }

        def sessions(region: str) -> boto3.Session:
            return regions[region].session()

        kms = []
        for server in regions.values():
            arn = server.session().client("kms", endpoint_url=server.endpoint_url).create_key()["KeyMetadata"]["Arn"]
            kms.append(KmsKey.of_arn(arn, endpoint_url=server.endpoint_url, sessions=sessions))
        path, bucket = tmp_path / "kms.json", installation.catalog().bucket
        Keyring.create(path, kms=kms, sessions=sessions)
        manifest = make(installation, Catalog(bucket, Keyring.load(path, sessions=sessions)), 4, sandbox_directory)
        for number, server in enumerate(regions.values()):
            server.stop()
            alone = Catalog(bucket, Keyring.load(path, sessions=sessions))
            with Progress("restore", scratch=tmp_path) as progress:
                opened = OpenedBackup(alone, manifest, policy=POLICY.pipeline, progress=progress)
                assert sum(opened.check_objects(component) for component in opened.object_components())
                restore_configuration(opened, tmp_path / f"{number}")
            server.start()


class Store:
    """A bucket of data keys, a keyring file, and rotations in processes of their own."""

    def __init__(self, installation: Installation, directory: Path) -> None:
        self.path = directory / "keyring.json"
        self.keyring = Keyring.create(self.path)
        server, name = installation.primary, installation.primary.create_bucket(f"rotation-{new_attempt()}")
        self.bucket = installation._bucket(server, name)
        credentials = server.session().get_credentials()
        assert credentials is not None
        self.told = json.dumps(
            {
                "access_key": credentials.access_key,
                "secret_key": credentials.secret_key,
                "region": server.region,
                "endpoint_url": server.endpoint_url,
                "bucket": name,
                "keyring": str(self.path),
            }
        )
        self.data_keys: dict[tuple[str, str], bytes] = {}
        for number in range(DATA_KEYS):
            self.write(f"{number:032x}", self.keyring)

    def write(self, owner: str, keyring: Keyring) -> None:
        whose = (owner, new_attempt())
        self.data_keys[whose] = create_data_key(self.bucket, keyring, owner=owner, attempt=whose[1])

    def rotation(self) -> subprocess.Popen[str]:
        """A process that is about to rotate: it begins when it is told a line."""
        process = subprocess.Popen(
            [sys.executable, "-c", ROTATION, self.told],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        return process

    def must_open(self, keyring: Keyring) -> None:
        for (owner, attempt), dek in self.data_keys.items():
            assert open_data_key(self.bucket, keyring, owner=owner, attempt=attempt) == dek

    def must_be_rotated(self) -> None:
        """One new key of each kind, with which alone everything opens; nothing is lost, and nothing is there twice."""
        keyring = Keyring.load(self.path)
        assert (len(keyring.keks), len(keyring.signing_keys)) == (2, 2)
        [new] = keyring.lasting_keks
        self.must_open(replace(keyring, keks={new: keyring.keks[new]}))
        self.must_open(self.keyring)
        versions = list(self.bucket.versions("keys/"))
        assert len(versions) == len({version.key for version in versions})
        assert {kek for found in stored_data_keys(self.bucket) for kek in found.wraps} <= keyring.keks.keys()


def begin(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return time.monotonic()


def kill_and_go_on(installation: Installation, directory: Path, choose: random.Random) -> None:
    store = Store(installation, directory)
    process = store.rotation()
    whole = 0.2 + DATA_KEYS * 0.012  # seconds; what ends before it is killed is no kill, and as good a round
    begin(process)
    time.sleep(choose.random() * whole)
    process.kill()
    process.wait()
    store.must_open(Keyring.load(store.path))
    store.write("full-20261122T000000Z", store.keyring)  # a backup that began before, and has the old file
    store.write("full-20261122T010000Z", Keyring.load(store.path))
    again = store.rotation()
    begin(again)
    assert again.wait(60) == 0
    store.must_be_rotated()


def test_a_rotation_that_is_killed_goes_on_where_it_was(installation: Installation, tmp_path: Path) -> None:
    kill_and_go_on(installation, tmp_path, random.Random(f"{FEW_SEED}"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_rotation_goes_on_however_often_it_is_killed(installation: Installation, tmp_path: Path) -> None:
    for number in range(40):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        try:
            kill_and_go_on(installation, directory, random.Random(f"{SEED}-{number}"))
        except BaseException:
            print(f"BACKUP_KILL_SEED={SEED}, round {number}")
            raise


def test_a_rotation_that_is_started_twice_is_one(installation: Installation, tmp_path: Path) -> None:
    store = Store(installation, tmp_path)
    both = [store.rotation(), store.rotation()]
    for process in both:
        begin(process)
    ended = [process.wait(60) for process in both]

    assert 0 in ended
    assert set(ended) <= {0, 5}  # the other one went along, or was told that somebody is at it
    store.must_be_rotated()
    assert make_keys(store.path, KEY_KINDS, POLICY.keys, now=store.keyring.clock() + timedelta(days=6)) == ()
