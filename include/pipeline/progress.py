"""What a running backup or restore tells: bytes, speed, share done, and what it costs the machine (R4.4, R6.3)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import psutil

log = logging.getLogger(__name__)

_MEGA = 1_000_000


@dataclass(frozen=True)
class Snapshot:
    """One look at the work. Bytes are totals since it began; speeds are of the last interval, in bytes a second.

    CPU is in percent of one core, this process and its children; memory is their resident bytes; disk is what is free
    where temporary files go; network is the machine's, both ways.
    """

    label: str
    seconds: float
    raw_bytes: int
    stored_bytes: int
    expected_bytes: int | None
    raw_speed: float
    cpu_percent: float
    memory_bytes: int
    disk_free_bytes: int
    network_speed: float

    @property
    def share(self) -> float | None:
        """Done over expected, 0 to 1, where the size of the source is known."""
        return min(self.raw_bytes / self.expected_bytes, 1.0) if self.expected_bytes else None

    def __str__(self) -> str:
        share = (
            f" of about {self.expected_bytes / _MEGA:,.0f} MB ({self.share:.0%})"
            if self.expected_bytes and self.share is not None
            else ""
        )
        return (
            f"{self.label}: {self.raw_bytes / _MEGA:,.1f} MB{share}, stored {self.stored_bytes / _MEGA:,.1f} MB, "
            f"{self.raw_speed / _MEGA:,.1f} MB/s · "
            f"cpu {self.cpu_percent:.0f} %, memory {self.memory_bytes / _MEGA:,.0f} MB, "
            f"disk free {self.disk_free_bytes / _MEGA:,.0f} MB, network {self.network_speed / _MEGA:,.1f} MB/s"
        )


@dataclass(frozen=True)
class Usage:
    """What the whole work took: seconds of wall and CPU, the highest resident memory, bytes on both sides."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    raw_bytes: int
    stored_bytes: int


class Progress:
    """Counts bytes from any thread, and reports a `Snapshot` every `every` and once at the end.

    `report` receives each one; by default it is a line in the log, which Airflow shows as the task's.
    """

    def __init__(
        self,
        label: str,
        *,
        every: timedelta = timedelta(seconds=5),
        scratch: Path = Path("/tmp"),  # noqa: S108 - only asked for its free space
        report: Callable[[Snapshot], None] = lambda snapshot: log.info("%s", snapshot),
    ) -> None:
        self.label = label
        self._every, self._scratch, self._report = every.total_seconds(), scratch, report
        self._lock = threading.Lock()
        self._raw = self._stored = 0
        self._expected: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._process = psutil.Process()
        self._peak_memory = 0
        self._began = self._last_time = time.monotonic()
        self._last_raw, self._last_cpu, self._last_network = 0, 0.0, 0
        self._first_cpu = 0.0

    def __enter__(self) -> Self:
        self._began = self._last_time = time.monotonic()
        self._first_cpu = self._last_cpu = self._cpu_seconds()
        self._last_network = _network_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._report(self._look())

    def add(self, *, raw: int = 0, stored: int = 0) -> None:
        """Count bytes that moved."""
        with self._lock:
            self._raw += raw
            self._stored += stored

    def expect(self, raw: int) -> None:
        """Add to the raw bytes that are expected in all."""
        with self._lock:
            self._expected = (self._expected or 0) + raw

    def usage(self) -> Usage:
        """What it took so far."""
        return Usage(
            seconds=time.monotonic() - self._began,
            cpu_seconds=self._cpu_seconds() - self._first_cpu,
            peak_memory_bytes=max(self._peak_memory, self._memory_bytes()),
            raw_bytes=self._raw,
            stored_bytes=self._stored,
        )

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._report(self._look())

    def _look(self) -> Snapshot:
        now, raw, cpu, network = time.monotonic(), self._raw, self._cpu_seconds(), _network_bytes()
        elapsed = max(now - self._last_time, 1e-6)
        memory = self._memory_bytes()
        self._peak_memory = max(self._peak_memory, memory)
        snapshot = Snapshot(
            label=self.label,
            seconds=now - self._began,
            raw_bytes=raw,
            stored_bytes=self._stored,
            expected_bytes=self._expected,
            raw_speed=(raw - self._last_raw) / elapsed,
            cpu_percent=max(cpu - self._last_cpu, 0) / elapsed * 100,
            memory_bytes=memory,
            disk_free_bytes=psutil.disk_usage(str(self._scratch)).free,
            network_speed=(network - self._last_network) / elapsed,
        )
        self._last_time, self._last_raw, self._last_cpu, self._last_network = now, raw, cpu, network
        return snapshot

    def _cpu_seconds(self) -> float:
        # Children that have ended are in children_user and children_system; those that run are asked.
        times = self._process.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in self._children():
            try:
                spent = child.cpu_times()
            except psutil.Error:
                continue
            total += spent.user + spent.system
        return float(total)

    def _memory_bytes(self) -> int:
        total = int(self._process.memory_info().rss)
        for child in self._children():
            try:
                total += int(child.memory_info().rss)
            except psutil.Error:
                continue
        return total

    def _children(self) -> list[psutil.Process]:
        return self._process.children(recursive=True)


def _network_bytes() -> int:
    counters = psutil.net_io_counters()
    return counters.bytes_sent + counters.bytes_recv if counters else 0
