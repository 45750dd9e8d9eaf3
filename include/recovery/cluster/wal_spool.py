"""The log that a recovery replays, fetched ahead of it into a spool that PostgreSQL's `restore_command` empties.

The command is a few lines of shell: it is run for each segment, and an interpreter's start would cost more than the
segment's replay. It moves `ready/<name>` to where PostgreSQL wants it. What a plan has and cannot be had is
`failed/<name>`: the command then exits above 125, which ends recovery, while 1 would be taken for the end of the log
(https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-RESTORE-COMMAND).
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Self

from include.errors import BackupError
from include.pipeline.account import Account
from include.pipeline.progress import Progress
from include.policy import Pipeline
from include.repository.lsn import Lsn, history_name, is_history, is_segment, segment_lsn
from include.repository.manifest import WalFile
from include.repository.timelines import TimelineHistory
from include.repository.wal import Shipped, WalArchive

log = logging.getLogger(__name__)

FAILED = 200
"""What the command exits with for a segment that the plan has and that could not be had."""
_AHEAD_BYTES = 256 << 20
_POLL_SECONDS = 0.02
_OTHER_PLAN = "Plan the recovery anew: `python -m include.cli windows` shows what the log has, and where it has gaps."
_SCRIPT = f"""#!/bin/sh
# restore_command: the name of a file of the log, and where PostgreSQL wants it.
spool=${{0%/*}}
grep -qxF "$1" "$spool/names" || exit 1
case "$1" in
*.history) take="cp" ;;
*) take="mv"; [ -e "${{2%/*}}/$1" ] && exit 1 ;; # PostgreSQL has it already
esac
until $take "$spool/ready/$1" "$2" 2>/dev/null; do
    [ -e "$spool/failed/$1" ] && exit {FAILED}
    [ -e "$spool/wanted/$1" ] || : >"$spool/wanted/$1" || exit {FAILED}
    sleep {_POLL_SECONDS}
done
[ ! -e "$spool/wanted/$1" ] || rm "$spool/wanted/$1"
"""


class LogIncomplete(BackupError):
    """A plan whose files are not the whole log that its recovery needs."""


class WalSpool:
    """Fetches the files of a plan ahead of their replay, in its order, and what PostgreSQL waits for first.

    At most 256 MiB of log, or two segments, lie ready. `failure` is the first error of a fetch; recovery may do
    without what failed. Entering starts the threads; leaving ends them, after the fetches under way.
    """

    def __init__(
        self,
        archive: WalArchive,
        wal: Sequence[WalFile | Shipped],
        directory: Path,
        *,
        segment_bytes: int,
        policy: Pipeline,
        progress: Progress,
        account: Account | None = None,
    ) -> None:
        self._archive, self._progress, self._account = archive, progress, account
        self._directory = directory
        self._files = {file.name: file for file in wal}
        self._to_come = deque([*filter(is_history, self._files), *filter(is_segment, self._files)])
        self._ahead = max(2, _AHEAD_BYTES // segment_bytes)
        self._begun: set[str] = set()
        self._under_way: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"wal-{number}", daemon=True)
            for number in range(policy.parts_in_flight)
        ]
        self.failure: BackupError | None = None
        self.fetched = 0

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700)
        for name in ("ready", "failed", "wanted", "coming"):
            (self._directory / name).mkdir(mode=0o700)
        (self._directory / "names").write_text("".join(f"{name}\n" for name in self._files))
        (self._directory / "restore.sh").write_text(_SCRIPT)
        for path in (self._directory, *self._directory.iterdir()):
            self._own(path)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    def command(self, data: Path) -> str:
        """The `restore_command` of a server whose data directory, from which it is run, is `data`."""
        return f'sh {os.path.relpath(self._directory, data)}/restore.sh "%f" "%p"'

    def begin_again(self) -> None:
        """Forget what was handed over: a server that is started again may have lost the file that it was taking."""
        with self._lock:
            self._begun = self._names("ready") | self._under_way

    def _work(self) -> None:
        while not self._closed.is_set():
            name = None
            try:
                name = self._choose()
                if name is not None:
                    self._fetch(self._files[name])
            except BaseException as error:  # whatever it is, it must not look like the end of the log
                self._fail(name, error)
            if name is None:
                self._closed.wait(_POLL_SECONDS)
            else:
                with self._lock:
                    self._under_way.discard(name)

    def _choose(self) -> str | None:
        """What to fetch next: what PostgreSQL waits for, else the next of the row while there is room."""
        with self._lock:
            name = next(iter(self._names("wanted") - self._begun), None)
            if name is None and self.failure is None and len(self._names("ready")) + len(self._under_way) < self._ahead:
                while self._to_come and self._to_come[0] in self._begun:
                    self._to_come.popleft()
                name = self._to_come.popleft() if self._to_come else None
            if name is not None:
                self._begun.add(name)
                self._under_way.add(name)
            return name

    def _fetch(self, file: WalFile | Shipped) -> None:
        coming = self._directory / "coming" / file.name
        self._archive.fetch(file, coming)
        coming.chmod(0o600)
        self._own(coming)
        self._progress.add(raw=coming.stat().st_size, stored=file.stored_bytes)
        coming.rename(self._directory / "ready" / file.name)
        self.fetched += 1

    def _fail(self, name: str | None, error: BaseException) -> None:
        if not isinstance(error, BackupError):
            said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            error = BackupError(
                f"{name or 'The next file of the log'} could not be fetched to {self._directory}: {said}.",
                mend="Make room there, or mend what it names, and start the recovery again.",
            )
        log.warning("%s", error)
        self.failure = self.failure or error
        if name is not None:
            (self._directory / "failed" / name).touch()

    def _names(self, place: str) -> set[str]:
        return set(os.listdir(self._directory / place))  # noqa: PTH208 - names are all that is wanted, many times

    def _own(self, path: Path) -> None:
        if self._account:
            os.chown(path, *self._account)


def prove_row(wal: Sequence[WalFile | Shipped], history: TimelineHistory, *, start: Lsn, segment_bytes: int) -> Lsn:
    """Prove that a plan's files are every segment from `start` on, in order, and the histories to follow them by.

    Returns where they end. Raises `LogIncomplete`, naming the first that is missing or is not where it belongs.
    """
    names = [file.name for file in wal]
    segments = [name for name in names if is_segment(name)]
    if not segments:
        raise LogIncomplete("The plan has no log at all.", mend=_OTHER_PLAN)
    if history.timeline > 1 and history_name(history.timeline) not in names:
        raise LogIncomplete(f"The plan lacks {history_name(history.timeline)}.", mend=_OTHER_PLAN)
    end = max(segment_lsn(name, segment_bytes) for name in segments) + segment_bytes
    needed = history.segment_names(start, Lsn(end), segment_bytes)
    for name, found in zip_longest(needed, segments):
        if name is None:
            raise LogIncomplete(f"The plan has {found}, which its recovery cannot use.", mend=_OTHER_PLAN)
        if found != name:
            instead = f" where it has {found}" if found else ""
            raise LogIncomplete(f"The plan lacks the segment {name}{instead}.", mend=_OTHER_PLAN)
    return Lsn(end)
