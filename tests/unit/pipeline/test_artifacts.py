"""An artifact is cut into segments of bounded size and comes back whole, in bounded memory (R4.3, R4.5)."""

from __future__ import annotations

import hashlib
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from include.pipeline.artifacts import (
    ArtifactPlace,
    ArtifactRefused,
    Written,
    check_artifact,
    next_level,
    read_artifact,
    read_segment,
    write_artifact,
)
from include.pipeline.progress import Progress
from include.pipeline.sealing import StreamRefused
from include.pipeline.store import Bucket
from include.pipeline.transfer import Upload
from include.policy import Pipeline, load_policy
from include.sandbox.s3 import S3Server

ROOT = Path(__file__).parents[3]
KEY = secrets.token_bytes(32)
LEVELS = range(1, 10)
MEMORY_LIMIT = 150_000_000
KIB = 1 << 10


@pytest.fixture(scope="module")
def store(s3_primary: S3Server) -> Bucket:
    name = s3_primary.create_bucket(f"artifacts-{secrets.token_hex(4)}")
    return Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)


def policy(segment_bytes: int = 64 * KIB) -> Pipeline:
    return load_policy().pipeline.model_copy(update={"segment_bytes": segment_bytes})


def place(artifact: str = "users", *, under: str | None = None) -> ArtifactPlace:
    return ArtifactPlace(f"{under or secrets.token_hex(4)}/{artifact}", {"artifact": artifact})


def write(
    store: Bucket, where: ArtifactPlace, source: list[bytes], *, segment_bytes: int = 64 * KIB
) -> tuple[Written, Progress]:
    progress = Progress("test")
    written = write_artifact(
        source, bucket=store, place=where, key=KEY, policy=policy(segment_bytes), progress=progress
    )
    return written, progress


def read(store: Bucket, where: ArtifactPlace, written: Written) -> bytes:
    return b"".join(read_artifact(written.segments, bucket=store, place=where, key=KEY, policy=policy()))


def lifelike(size: int, noise: float, seed: int) -> bytes:
    """Bytes of which a share cannot be compressed."""
    dice = random.Random(seed)
    blocks = (dice.randbytes(KIB) if dice.random() < noise else bytes(KIB) for _ in range(size // KIB + 1))
    return b"".join(blocks)[:size]


@given(level=st.sampled_from(LEVELS), waited=st.floats(0, 1), seconds=st.floats(1e-9, 1e6))
def test_the_level_goes_one_step_towards_what_is_idle(level: int, waited: float, seconds: float) -> None:
    after = next_level(level, waited * seconds, seconds, load_policy().pipeline)
    assert after in LEVELS
    assert abs(after - level) <= 1
    if waited > 0.51:
        assert after == min(level + 1, max(LEVELS))
    if waited < 0.19:
        assert after == max(level - 1, min(LEVELS))


def test_the_level_stays_where_network_and_processor_share_the_work() -> None:
    assert [next_level(level, 0.35, 1.0, load_policy().pipeline) for level in LEVELS] == list(LEVELS)


@pytest.mark.parametrize(("waited", "ends_at"), [(0.0, min(LEVELS)), (1.0, max(LEVELS))])
def test_the_level_settles_at_a_bound(waited: float, ends_at: int) -> None:
    level = load_policy().pipeline.compression_level
    for _ in range(20):
        level = next_level(level, waited, 1.0, load_policy().pipeline)
    assert level == ends_at


def test_streams_that_share_room_have_no_more_parts_on_their_way(
    store: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four streams of four parts each, and room for two."""
    on_their_way, most, lock = 0, 0, threading.Lock()
    send = Upload._send_part

    def counted(upload: Upload, upload_id: str, number: int, part: bytes) -> object:
        nonlocal on_their_way, most
        with lock:
            on_their_way += 1
            most = max(most, on_their_way)
        try:
            return send(upload, upload_id, number, part)
        finally:
            with lock:
                on_their_way -= 1

    monkeypatch.setattr(Upload, "_send_part", counted)
    room = threading.BoundedSemaphore(2)
    noise = random.Random(1).randbytes(22 << 20)
    of_five = policy(64 << 20).model_copy(update={"part_bytes": 5 << 20})

    def stream(number: int) -> Written:
        source = [noise[start : start + KIB * KIB] for start in range(0, len(noise), KIB * KIB)]
        return write_artifact(
            source, bucket=store, place=place(), key=KEY, policy=of_five, progress=Progress("test"), room=room
        )

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(stream, range(4)))
    assert [segment.measure.raw_bytes for each in written for segment in each.segments] == [len(noise)] * 4
    assert most == 2
    assert room.acquire(blocking=False)
    assert room.acquire(blocking=False)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 600_000),
    noise=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(500, 300_000),
    segment_bytes=st.sampled_from([64 * KIB, 150_000, 512 * KIB]),
    seed=st.integers(0, 9),
)
@example(size=600_000, noise=1.0, chunk=300_000, segment_bytes=64 * KIB, seed=1)
@example(size=600_000, noise=1.0, chunk=3_000, segment_bytes=150_000, seed=2)
@example(size=600_000, noise=0.3, chunk=7_000, segment_bytes=64 * KIB, seed=3)
def test_any_size_in_any_chunks_comes_back_from_bounded_segments(
    store: Bucket, *, size: int, noise: float, chunk: int, segment_bytes: int, seed: int
) -> None:
    where, content = place(), lifelike(size, noise, seed)
    chunks = [content[start : start + chunk] for start in range(0, size, chunk)]
    written, progress = write(store, where, chunks, segment_bytes=segment_bytes)
    measures = [segment.measure for segment in written.segments]

    assert read(store, where, written) == content
    assert max(measure.stored_bytes for measure in measures) <= segment_bytes
    assert [segment.key for segment in written.segments] == list(store.keys(where.prefix))
    assert [store.size(segment.key) for segment in written.segments] == [each.stored_bytes for each in measures]
    position = 0
    for measure in measures:
        raw = content[position : (position := position + measure.raw_bytes)]
        assert hashlib.sha256(raw).hexdigest() == measure.raw_sha256
    usage = progress.usage()
    assert (usage.raw_bytes, usage.stored_bytes) == (size, sum(each.stored_bytes for each in measures))


def test_segments_are_filled(store: Bucket) -> None:
    """What compresses well is not cut by its raw size."""
    written, _ = write(store, place(), [bytes(1 << 20)] * 8, segment_bytes=512 * KIB)
    assert len(written.segments) == 1


def test_an_empty_artifact_has_one_segment(store: Bucket) -> None:
    where = place()
    written, _ = write(store, where, [])

    assert len(written.segments) == 1
    assert read(store, where, written) == b""


def test_a_segment_stands_alone(store: Bucket) -> None:
    where, content = place(), secrets.token_bytes(200_000)
    written, _ = write(store, where, [content])
    last = len(written.segments) - 1
    raw = b"".join(read_segment(written.segments[last], last, bucket=store, place=where, key=KEY, policy=policy()))

    assert last > 1
    assert raw
    assert content.endswith(raw)


@pytest.mark.requirement("R4.5")
def test_a_missing_segment_is_named(store: Bucket) -> None:
    where = place()
    written, _ = write(store, where, [secrets.token_bytes(200_000)])
    store.delete(written.segments[1].key)
    for prove in (lambda: read(store, where, written), lambda: check(store, where, written)):
        with pytest.raises(StreamRefused, match=written.segments[1].key):
            prove()


def check(store: Bucket, where: ArtifactPlace, written: Written) -> None:
    check_artifact(written.segments, bucket=store, place=where, key=KEY, policy=policy())


@pytest.mark.requirement("R4.5")
def test_swapped_segments_are_refused(store: Bucket) -> None:
    where = place()
    written, _ = write(store, where, [secrets.token_bytes(200_000)])
    first, second = (segment.key for segment in written.segments[:2])
    bodies = store.read(first), store.read(second)
    store.put(first, bodies[1])
    store.put(second, bodies[0])
    with pytest.raises(StreamRefused, match=f"{first} does not decrypt"):
        read(store, where, written)


def test_an_artifact_under_another_name_is_refused(store: Bucket) -> None:
    where, other = place("users", under="one"), place("chats", under="one")
    written, _ = write(store, where, [b"users"])
    chats, _ = write(store, other, [b"users"])
    with pytest.raises(ArtifactRefused, match=r"one/chats.*listed as one/users"):
        read(store, other, written)
    store.put(chats.segments[0].key, store.read(written.segments[0].key))
    with pytest.raises(StreamRefused, match="one/chats"):
        read(store, other, chats)


@pytest.mark.requirement("R4.4")
def test_a_source_that_fails_leaves_no_half_segment(store: Bucket) -> None:
    where = place()

    def source() -> Iterator[bytes]:
        yield secrets.token_bytes(100_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(store, where, source())

    whole = list(store.keys(where.prefix))
    assert [len(store.read(key)) > 0 for key in whole] == [True] * len(whole)
    assert store.client.list_multipart_uploads(Bucket=store.name).get("Uploads", []) == []


def test_300_megabytes_pass_in_bounded_memory(store: Bucket, s3_primary: S3Server) -> None:
    """In a process of its own, with the policy's own numbers; nothing of it compresses."""
    credentials = s3_primary.session().get_credentials()
    script = f"""
import os, resource, boto3, sys
from include.pipeline.artifacts import ArtifactPlace, check_artifact, write_artifact
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
bucket = Bucket(boto3.Session(), {store.name!r}, region={s3_primary.region!r}, endpoint_url={s3_primary.endpoint_url!r})
common = dict(bucket=bucket, place=ArtifactPlace("big/noise", {{}}), key=bytes(32), policy=load_policy().pipeline)
bucket.put("big/warm", b"x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
written = write_artifact((os.urandom(1 << 20) for _ in range(300)), progress=Progress("big"), **common)
check_artifact(written.segments, **common)
print(len(written.segments), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    environment = {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    segments, grown = (int(word) for word in done.stdout.split())

    assert segments == 5
    assert grown < MEMORY_LIMIT
