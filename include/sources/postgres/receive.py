"""WAL segments as the server streams them: `pg_receivewal` into a directory, each file handed on when it is whole.

https://www.postgresql.org/docs/current/app-pgreceivewal.html. What it does not say, and was measured on 15 and 18:

- In a directory that holds an empty `<segment>.partial` it begins with exactly that segment, whatever its slot says.
- `--endpos` is met by the first byte *after* it: a boundary less one ends with the segment before the boundary whole,
  also where nothing was written behind it; the boundary itself would wait for the next record.
- `--no-sync` is what makes it fast (768 MiB in 1.3 to 2.4 s, with syncs in 6.0 s); `--compress=lz4` adds nothing
  to that (2.2 s, and 7.9 s), and not every build has it. The files are handed on and uploaded; nobody counts on this
  disk.
- It says when a segment is finished, right after it has given it its name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import BackupError
from include.pipeline.leash import LeashedProcess, leashed
from include.repository.lsn import Lsn, is_history, is_segment, segment_lsn, segment_name, timeline_of
from include.sources.postgres.login import KEEPALIVES
from include.sources.postgres.sessions import APPLICATION

if TYPE_CHECKING:
    from include.sources.postgres.login import DatabaseLogin
    from include.sources.postgres.tools import PostgresTools

ROUND_BYTES = 1 << 30
"""What is received ahead of who takes it: a window of any size fits on a disk that has a little more than this."""

_LOOK_SECONDS = 1.0

# The server's sentence ("requested WAL segment … has already been removed") is in its own language. Of what it may say
# of a segment here it is the only one that names no file (pg_wal/…) and nothing in the segment (offset …: …).
_GONE = re.compile(r"replication stream: .*?(?<![/0-9A-F])([0-9A-F]{24})(?![0-9A-F])[^0-9:]*$", re.MULTILINE)


class ReceiveFailed(BackupError):
    """The server's WAL could not be received."""


class ReceiveStalled(ReceiveFailed):
    """No WAL came for longer than the policy allows, and the end was not reached."""


class WalGone(BackupError):
    """The server has removed WAL that was asked for; `segment` is the first that is missing."""

    def __init__(self, segment: str) -> None:
        super().__init__(
            f"The server has removed the WAL segment {segment} already.",
            mend="What is missing is declared a gap, and a snapshot backup begins again after it.",
        )
        self.segment = segment


class Receiver:
    """A `pg_receivewal` that streams into `directory`; see `receive_continuously`."""

    def __init__(self, child: LeashedProcess, directory: Path) -> None:
        self._child = child
        self._directory = directory
        self._seen = {path.name for path in directory.iterdir()}

    def finished(self, wait: timedelta) -> list[Path]:
        """The files that were finished since the last call, in order; waits up to `wait` for the first.

        Segments, and the history file of each timeline before its first segment. Raises `ReceiveFailed`, `WalGone` when
        the stream has ended by itself, after its last file was returned.
        """
        deadline = time.monotonic() + wait.total_seconds()
        while True:
            ended = self._child.ended
            if found := self._new():
                return found
            if ended:
                raise _failure(self._child)
            if (left := deadline - time.monotonic()) <= 0:
                return []
            self._child.wait_for_word(left)

    @property
    def pid(self) -> int:
        """The process id of `pg_receivewal`."""
        return self._child.pid

    def _new(self) -> list[Path]:
        found = sorted(
            path
            for path in self._directory.iterdir()
            if path.name not in self._seen and (is_segment(path.name) or is_history(path.name))
        )
        self._seen.update(path.name for path in found)
        return found

    def _until(self, stall_limit: timedelta) -> Iterator[Path]:
        """Every file until the child has ended; raises unless it ended well."""
        state, since = self._progress(), time.monotonic()
        while True:
            ended = self._child.ended
            if found := self._new():
                yield from found
                since = time.monotonic()  # whoever takes a file may have taken its time
            elif ended:
                break
            elif (now := self._progress()) != state:
                state, since = now, time.monotonic()
            elif time.monotonic() - since > stall_limit.total_seconds():
                raise ReceiveStalled(
                    f"{self._child.name} received nothing for {stall_limit.total_seconds():g} s.",
                    mend="Look whether the server writes WAL up to the end that was asked for, and whether the "
                    "connection to it lives; or raise pipeline.stall_limit in the policy.",
                )
            else:
                self._child.wait_for_word(min(_LOOK_SECONDS, stall_limit.total_seconds()))
        if self._child.exit_code:
            raise _failure(self._child)

    def _progress(self) -> set[tuple[str, int]]:
        """Changes whenever a byte arrives: a file has its whole size from the beginning."""
        state = set()
        for path in self._directory.glob("*.partial"):
            with suppress(FileNotFoundError):  # finished in this moment
                state.add((path.name, path.stat().st_mtime_ns))
        return state


def receive_until(
    tools: PostgresTools,
    login: DatabaseLogin,
    *,
    slot: str,
    start: str,
    end: Lsn,
    segment_bytes: int,
    directory: Path,
    stall_limit: timedelta,
    application_name: str = APPLICATION,
) -> Iterator[Path]:
    """Receive the segments from the one named `start` up to `end`, a boundary; yields each file as soon as it is whole.

    The history file of a timeline comes before its first segment; a segment in which the server changed its timeline
    comes on the newer one only. `directory` is empty at the beginning, and whoever takes a file may delete it:
    no more than `ROUND_BYTES` is ahead of it. The iterator *ends* only when the last segment was yielded. Raises
    `WalGone`, `ReceiveStalled`, `ReceiveFailed`. `end` has to be written already, or to come within `stall_limit`:
    an idle server is switched to its next segment first.
    """
    if end % segment_bytes:
        raise ValueError(f"{end} is no boundary of WAL segments")
    _require_empty(directory)
    at, timeline = segment_lsn(start, segment_bytes), timeline_of(start)
    while at < end:
        stop = Lsn(min(end, at + max(ROUND_BYTES, segment_bytes)))
        first = segment_name(timeline, at, segment_bytes)
        argv = _argv(tools, slot, directory, f"--endpos={Lsn(stop - 1)}")
        with _receiver(argv, login.environment(application_name), first, directory) as receiver:
            for path in receiver._until(stall_limit):
                if is_segment(path.name):
                    at, timeline = Lsn(segment_lsn(path.name, segment_bytes) + segment_bytes), timeline_of(path.name)
                yield path
        if at != stop:
            raise ReceiveFailed(
                f"pg_receivewal ended at {at}, before {stop}.",
                mend="Look at the server's log, and start the run again.",
            )


@contextmanager
def receive_continuously(
    tools: PostgresTools,
    login: DatabaseLogin,
    *,
    slot: str,
    start: str,
    directory: Path,
    application_name: str = APPLICATION,
) -> Iterator[Receiver]:
    """Receive from the segment named `start` on, without an end, until the context is left.

    `directory` is empty. The stream follows the server onto a new timeline. It does not try again by itself: when it
    ends, `Receiver.finished` raises, and who called starts anew after what it has.
    """
    _require_empty(directory)
    argv = _argv(tools, slot, directory)
    with _receiver(argv, login.environment(application_name), start, directory) as receiver:
        yield receiver


@contextmanager
def _receiver(argv: Sequence[str], environment: Mapping[str, str], start: str, directory: Path) -> Iterator[Receiver]:
    (directory / f"{start}.partial").touch(mode=0o600)
    with leashed(argv, environment=environment) as child:
        yield Receiver(child, directory)


def _argv(tools: PostgresTools, slot: str, directory: Path, *options: str) -> list[str]:
    connection = " ".join(f"{name}={value}" for name, value in KEEPALIVES.items())
    return [
        *(tools.pg_receivewal, f"--dbname={connection}", f"--directory={directory}", f"--slot={slot}"),
        *("--no-loop", "--no-sync", "--no-password", "--verbose", *options),
    ]


def _require_empty(directory: Path) -> None:
    if any(directory.iterdir()):
        raise ReceiveFailed(
            f"{directory} is not empty, and the stream begins after what lies there.",
            mend="Give every stream a directory of its own.",
        )


def _failure(child: LeashedProcess) -> BackupError:
    if gone := _GONE.search(child.said):
        return WalGone(gone[1])
    return ReceiveFailed(
        f"{child.name} ended with exit code {child.exit_code}: {child.said or 'it said nothing'}",
        mend="Mend what it names; the next run goes on after what is in the bucket.",
    )
