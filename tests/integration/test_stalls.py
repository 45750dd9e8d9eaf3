"""A source that fails or stalls while its bytes are on their way leaves nothing that looks finished (R4.4)."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from include.backup.application import Application
from include.backup.consistency import SurroundingsSilent, consistency_point
from include.pipeline.artifacts import ArtifactPlace, write_artifact
from include.pipeline.process import SourceFailed, SourceStalled, run_source
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, StoreError
from include.policy import Barrier, load_policy
from include.sandbox.installation import Installation
from include.sandbox.proxy import Call, Fault, FaultyProxy
from include.sandbox.s3 import S3Server

POLICY = load_policy().pipeline.model_copy(update={"part_bytes": 5 << 20})
NOISE = "head -c 12000000 /dev/urandom"
"""More than two parts, so that an upload is open when the source ends."""


@pytest.fixture
def store(s3_primary: S3Server, bucket: str) -> Bucket:
    return Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)


def write(store: Bucket, script: str, *, stall_limit: timedelta = timedelta(minutes=1)) -> None:
    place = ArtifactPlace("full/users", {"artifact": "users"})
    with run_source(["sh", "-c", script], environment={}, stall_limit=stall_limit) as chunks:
        write_artifact(
            chunks, bucket=store, place=place, key=secrets.token_bytes(32), policy=POLICY, progress=Progress("test")
        )


def opened_uploads(store: Bucket) -> list[str]:
    """The uploads that begin from now on; the list fills while the test goes on."""
    opened: list[str] = []
    store.client.meta.events.register(
        "after-call.s3.CreateMultipartUpload", lambda parsed, **_: opened.append(parsed["UploadId"])
    )
    return opened


def left_behind(store: Bucket) -> list:
    uploads = store.client.list_multipart_uploads(Bucket=store.name).get("Uploads", [])
    return [*store.versions(""), *uploads]


def test_a_source_that_ends_well_is_stored(store: Bucket) -> None:
    write(store, NOISE)
    assert list(store.keys("")) == ["full/users.zst.enc/00000"]


@pytest.mark.requirement("R4.4")
@pytest.mark.parametrize(
    ("script", "failure", "told"),
    [
        (f"{NOISE}; echo connection lost >&2; exit 1", SourceFailed, "exit code 1: connection lost"),
        (f"{NOISE}; kill -9 $$", SourceFailed, "exit code -9"),
        ("exit 1", SourceFailed, "exit code 1"),
        (f"{NOISE}; exec sleep 60", SourceStalled, "wrote nothing for 0.5 s"),
    ],
)
def test_a_source_that_fails_or_stalls_leaves_nothing(
    store: Bucket, script: str, failure: type[SourceFailed], told: str
) -> None:
    opened = opened_uploads(store)
    with pytest.raises(failure, match=told):
        write(store, script, stall_limit=timedelta(seconds=0.5))

    assert left_behind(store) == []
    assert bool(opened) == (NOISE in script)


@pytest.mark.requirement("R4.4")
def test_a_store_that_refuses_a_part_ends_the_source_and_leaves_nothing(store: Bucket) -> None:
    def refuse(params: dict, **_: object) -> None:
        params["headers"]["x-amz-checksum-sha256"] = "A" * 43 + "="

    store.client.meta.events.register("before-call.s3.UploadPart", refuse)
    with pytest.raises(StoreError, match=r"Could not write s3://.*/full/users\.zst\.enc/00000"):
        write(store, "cat /dev/urandom")
    assert left_behind(store) == []


@pytest.mark.requirement("R4.3")
def test_writers_do_not_wait_for_a_store_that_falls_silent(installation: Installation) -> None:
    policy = load_policy().barrier
    application = installation.application()
    looks = 0

    def silent_once_writes_are_stopped(call: Call) -> Fault | None:
        nonlocal looks
        looks += call.method == "HEAD"
        return Fault.SILENCE if call.method == "HEAD" and looks == 2 else None

    with FaultyProxy(installation.primary.endpoint_url, silent_once_writes_are_stopped) as proxy:
        slow = Bucket(
            installation.primary.session(),
            application.objects.name,
            region=installation.primary.region,
            endpoint_url=proxy.endpoint_url,
            stall_limit=timedelta(seconds=46),  # so that one try lasts 2.5 s,
        )
        with (
            installation.synapse.database.connect(application_name="writer", autocommit=True) as writer,
            ThreadPoolExecutor(1) as pool,
        ):
            taken = pool.submit(_take, replace(application, objects=slow), policy)
            waits = []
            while not taken.done():
                began = time.monotonic()
                writer.execute(
                    "UPDATE system_settings SET key = key WHERE key = (SELECT min(key) FROM system_settings)"
                )
                waits.append(time.monotonic() - began)
            with pytest.raises(SurroundingsSilent, match=r"did not answer within 1 s while writes were stopped"):
                taken.result()

    assert looks > 1
    assert 0.5 < max(waits) < 2 * policy.lock_timeout.total_seconds()


def _take(application: Application, policy: Barrier) -> None:
    with consistency_point(application, f"full-20261122T000000Z.{secrets.token_hex(8)}", policy):
        pass
