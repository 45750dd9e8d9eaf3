"""Writing an artifact as a row of sealed segments, and reading it back (`docs/format.md`, *Artifacts*)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from include.errors import BackupError
from include.pipeline.progress import Progress
from include.pipeline.sealing import Context, Measure, Sealer, StreamRefused, open_stream
from include.pipeline.store import Bucket, ObjectMissing
from include.pipeline.transfer import Upload, fetch_ranges
from include.policy import Pipeline

FETCH_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20
NETWORK_BOUND, PROCESSOR_BOUND = 0.5, 0.2
"""Shares of a segment's time spent waiting for the network: above the first and below the second the level moves."""
_UNKNOWN_TAIL = 20 << 10
"""What a flushed stream may still hold back or add: a Cobblestone chunk of 16 KiB, the frame's end, a reserve."""


class ArtifactRefused(BackupError):
    """An artifact that is not what its manifest says."""


@dataclass(frozen=True)
class Segment:
    """One sealed stream of an artifact: its object's key, and its sizes and digests."""

    key: str
    measure: Measure


@dataclass(frozen=True)
class ArtifactPlace:
    """Where an artifact belongs: its key prefix (`…/<attempt>/database/users.pgdump`) and its streams' context.

    `tags` are those of its objects.
    """

    prefix: str
    context: Context
    tags: Mapping[str, str] = field(default_factory=dict)

    def segment_key(self, number: int) -> str:
        """The key of segment `number`, counted from 0."""
        return f"{self.prefix}.zst.enc/{number:05d}"

    def segment_context(self, number: int) -> Context:
        """The context of segment `number`: it decrypts nowhere else."""
        return {**self.context, "segment": number}


@dataclass(frozen=True)
class Written:
    """An artifact that is durable: its segments, the digest of the whole raw stream, and the seconds it took."""

    segments: tuple[Segment, ...]
    seconds: float


def next_level(level: int, waited: float, seconds: float, policy: Pipeline) -> int:
    """The zstd level of the segment after one that took `seconds` at `level` and stood still for `waited` of them.

    A stream that waits for the network has processor time to spare, and compresses better; one that does not wait for
    it is held up by the processor, and compresses faster. In between the level stays.
    """
    share = waited / seconds if seconds > 0 else 0.0
    step = (share > NETWORK_BOUND) - (share < PROCESSOR_BOUND)
    return min(max(level + step, policy.compression_lowest), policy.compression_highest)


def write_artifact(
    source: Iterable[bytes],
    *,
    bucket: Bucket,
    place: ArtifactPlace,
    key: bytes,
    policy: Pipeline,
    progress: Progress,
    room: threading.Semaphore | None = None,
) -> Written:
    """Stream `source` into segments of at most `policy.segment_bytes` stored, in bounded memory.

    Streams that share `room` share the memory of parts on their way. The first segment has `policy.compression_level`,
    each one after it what `next_level` makes of the one before. The store completes one while the next is filled: else
    compression would stand still for the answers. Every segment is durable when this returns. An error of the source,
    of the store or of anything else leaves no segment that is half-written; whole ones stay unreferenced until the
    reaper takes them.
    """
    began = time.monotonic()
    chunks = _slices(source, min(_CHUNK_BYTES, max(policy.segment_bytes // 8, 1)))
    segments: list[Segment] = []
    level = policy.compression_level
    ahead = next(chunks, None)
    room = room or threading.BoundedSemaphore(policy.parts_in_flight)
    with ThreadPoolExecutor(1, thread_name_prefix="complete") as completing:
        before: Future[None] | None = None
        while ahead is not None or not segments:
            number, started = len(segments), time.monotonic()
            upload = Upload(
                bucket,
                place.segment_key(number),
                part_bytes=policy.part_bytes,
                in_flight=policy.parts_in_flight,
                room=room,
                tags=place.tags,
            )
            with _abandoned_on_failure(upload):
                sealer = Sealer(key, place.segment_context(number), level=level, workers=policy.compression_workers)
                ahead = _fill_segment(ahead, chunks, sealer, upload, policy=policy, progress=progress)
                filled = time.monotonic()
                if before is not None:
                    before.result()
            before = completing.submit(_complete, upload)
            segments.append(Segment(upload.key, sealer.measure()))
            now = time.monotonic()
            level = next_level(level, upload.waited + now - filled, now - started, policy)
        if before is not None:
            before.result()
    return Written(tuple(segments), time.monotonic() - began)


@contextmanager
def _abandoned_on_failure(upload: Upload) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with upload:  # left without being completed: what was sent is removed
            pass
        raise


def _complete(upload: Upload) -> None:
    with upload:
        upload.complete()


def _fill_segment(
    first: memoryview | None,
    chunks: Iterator[memoryview],
    sealer: Sealer,
    upload: Upload,
    *,
    policy: Pipeline,
    progress: Progress,
) -> memoryview | None:
    """Seal and send one segment, beginning with `first`.

    Returns the chunk that did not fit: None at the source's end.
    """
    chunk, unflushed = first, 0

    def store(stored: bytes, raw: int = 0) -> None:
        upload.write(stored)
        progress.add(raw=raw, stored=len(stored))

    while chunk is not None:
        if sealer.raw_bytes and sealer.stored_bytes + _ceiling(unflushed + len(chunk)) > policy.segment_bytes:
            store(sealer.flush())
            unflushed = 0
            if sealer.stored_bytes + _ceiling(len(chunk)) > policy.segment_bytes:
                break
        store(sealer.add(chunk), raw=len(chunk))
        unflushed += len(chunk)
        chunk = next(chunks, None)
    store(sealer.finish())
    return chunk


def read_artifact(
    segments: Sequence[Segment],
    *,
    bucket: Bucket,
    place: ArtifactPlace,
    key: bytes,
    policy: Pipeline,
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """The raw bytes of an artifact, in order, fetched ahead across segment borders.

    Raises `StreamRefused` or `ArtifactRefused`, naming the segment. Only an iteration that *ends* delivered everything.
    """
    ranges = ((segment.key, start, end) for segment in segments for start, end in _ranges(segment))
    fetched = _missing_named(fetch_ranges(bucket, ranges, in_flight=policy.parts_in_flight))
    for number, segment in enumerate(segments):
        stored = (next(fetched) for _ in _ranges(segment))
        yield from _opened(segment, number, stored, bucket=bucket, place=place, key=key, progress=progress)


def read_segment(
    segment: Segment,
    number: int,
    *,
    bucket: Bucket,
    place: ArtifactPlace,
    key: bytes,
    policy: Pipeline,
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """The raw bytes of one segment: segments stand alone, so several may be read side by side."""
    ranges = ((segment.key, start, end) for start, end in _ranges(segment))
    fetched = _missing_named(fetch_ranges(bucket, ranges, in_flight=policy.parts_in_flight))
    yield from _opened(segment, number, fetched, bucket=bucket, place=place, key=key, progress=progress)


def check_artifact(
    segments: Sequence[Segment],
    *,
    bucket: Bucket,
    place: ArtifactPlace,
    key: bytes,
    policy: Pipeline,
    progress: Progress | None = None,
) -> None:
    """Read every byte back, segments side by side, and prove it; raises like `read_artifact` (R4.5)."""

    def check(number: int, segment: Segment) -> None:
        for _ in read_segment(segment, number, bucket=bucket, place=place, key=key, policy=policy, progress=progress):
            pass

    with ThreadPoolExecutor(policy.streams_at_once, thread_name_prefix="check") as pool:
        for result in [pool.submit(check, number, segment) for number, segment in enumerate(segments)]:
            result.result()


def _opened(
    segment: Segment,
    number: int,
    stored: Iterable[bytes],
    *,
    bucket: Bucket,
    place: ArtifactPlace,
    key: bytes,
    progress: Progress | None,
) -> Iterator[bytes]:
    if segment.key != place.segment_key(number):
        raise ArtifactRefused(
            f"Segment {number} of {place.prefix} is listed as {segment.key}.",
            mend="The manifest is inconsistent: use another backup.",
        )
    raw = open_stream(
        stored, key, place.segment_context(number), name=f"{bucket}/{segment.key}", expected=segment.measure
    )
    for chunk in raw:
        if progress is not None:
            progress.add(raw=len(chunk))
        yield chunk
    if progress is not None:
        progress.add(stored=segment.measure.stored_bytes)


def _missing_named(fetched: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from fetched
    except ObjectMissing as missing:
        raise StreamRefused(
            missing.what, mend="A segment of this backup is gone: use the replica's copy or another backup."
        ) from missing


def _ranges(segment: Segment) -> list[tuple[int, int]]:
    size = segment.measure.stored_bytes
    return [(start, min(start + FETCH_BYTES, size)) for start in range(0, size, FETCH_BYTES)]


def _slices(source: Iterable[bytes], size: int) -> Iterator[memoryview]:
    for chunk in source:
        view = memoryview(chunk)
        for start in range(0, len(view), size):
            yield view[start : start + size]


def _ceiling(raw: int) -> int:
    """The most that `raw` bytes can become: zstd's bound, Cobblestone's tags, and what a stream holds back."""
    return raw + (raw >> 8) + 16 * (raw // 16_384 + 1) + _UNKNOWN_TAIL
