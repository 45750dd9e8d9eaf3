"""What a running backup tells: bytes, speed, share done, CPU, memory, disk, network (R4.4)."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from include.pipeline.progress import Progress, Snapshot

NEVER, OFTEN = timedelta(hours=1), timedelta(milliseconds=10)


@pytest.mark.requirement("R4.4")
def test_a_snapshot_tells_what_moved_and_what_it_costs(tmp_path: Path) -> None:
    seen: list[Snapshot] = []
    with Progress("full", every=NEVER, scratch=tmp_path, report=seen.append) as progress:
        progress.expect(3_000_000)
        progress.expect(1_000_000)
        progress.add(raw=1_000_000)
        progress.add(stored=250_000)
    (last,) = seen

    assert (last.label, last.raw_bytes, last.stored_bytes, last.share) == ("full", 1_000_000, 250_000, 0.25)
    assert last.raw_speed == pytest.approx(1_000_000 / last.seconds, rel=0.5)
    assert last.memory_bytes > 10_000_000
    assert last.disk_free_bytes == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.1)
    assert last.cpu_percent >= 0
    assert last.network_speed >= 0


def test_a_share_is_told_only_where_the_size_is_known() -> None:
    seen: list[Snapshot] = []
    with Progress("full", every=NEVER, report=seen.append) as progress:
        progress.add(raw=5)
    assert seen[0].share is None


def test_work_beyond_what_was_expected_is_not_more_than_all() -> None:
    seen: list[Snapshot] = []
    with Progress("full", every=NEVER, report=seen.append) as progress:
        progress.expect(1)
        progress.add(raw=5)
    assert seen[0].share == 1.0


def test_cpu_time_of_this_process_and_of_children_counts(tmp_path: Path) -> None:
    seen: list[Snapshot] = []
    busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    with Progress("full", every=NEVER, report=seen.append) as progress, psutil.Popen(["sh", "-c", busy]) as child:
        child.wait()
        usage = progress.usage()

    assert usage.cpu_seconds > 0.05
    assert seen[0].cpu_percent > 5
    assert usage.peak_memory_bytes > 10_000_000


@pytest.mark.requirement("R4.4")
def test_it_is_told_again_and_again_while_the_work_goes_on() -> None:
    thrice = threading.Semaphore(0)
    with Progress("full", every=OFTEN, report=lambda _: thrice.release()):
        assert all(thrice.acquire(timeout=30) for _ in range(3))


def test_by_default_it_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "include.pipeline.progress"), Progress("full-1", every=NEVER) as progress:
        progress.expect(20_000_000)
        progress.add(raw=5_000_000, stored=1_000_000)
    (line,) = caplog.messages

    for part in (
        "full-1: 5.0 MB of about 20 MB (25%)",
        "stored 1.0 MB",
        "MB/s",
        "cpu",
        "memory",
        "disk free",
        "network",
    ):
        assert part in line


def test_many_threads_lose_no_byte() -> None:
    with Progress("full", every=NEVER, report=lambda _: None) as progress:
        threads = [
            threading.Thread(target=lambda: [progress.add(raw=1, stored=2) for _ in range(5_000)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        usage = progress.usage()
    assert (usage.raw_bytes, usage.stored_bytes) == (40_000, 80_000)
