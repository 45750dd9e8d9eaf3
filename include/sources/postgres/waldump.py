"""What is in WAL segments, as `pg_waldump` reads them.

It must be of the server's own major version (`tools_of`): the records have another form in each. It checks every
record's CRC and that each names the one before it, and stops at the first that does not
(https://www.postgresql.org/docs/current/pgwaldump.html).
"""

from __future__ import annotations

import codecs
import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import BackupError
from include.pipeline.process import SourceFailed, SourceStalled, run_source
from include.repository.lsn import Lsn, is_segment, segment_lsn, segment_name, segment_start, timeline_of

if TYPE_CHECKING:
    from include.sources.postgres.tools import PostgresTools

STALL_LIMIT = timedelta(minutes=1)

_RECORD = re.compile(r"rmgr: (\S+) .*? lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F]+/[0-9A-F]+, desc: (.*)", re.DOTALL)
# Of a prepared transaction the number comes first. What follows the time are lists of what the transaction touched.
# When a transaction is prepared, its name is printed, and ": " and the time behind it. Any user can choose a name that
# holds a line end and what looks like another record; but then that time stands behind it.
_TIME = r"\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"
_ENDED = re.compile(rf"(COMMIT|ABORT)(?:_PREPARED \d+:)? ({_TIME}) UTC(?:;(?!.*: {_TIME}).*)?", re.DOTALL)
_RESTORE_POINT = "RESTORE_POINT "
_SEGMENT = re.compile(r"(?<![0-9A-F])[0-9A-F]{24}(?![0-9A-F])")
_LSN = re.compile(r"(?<![0-9A-F])[0-9A-F]{1,8}/[0-9A-F]{1,8}(?![0-9A-F])")
_BEGIN = "rmgr: "
_SLOWEST_BYTES_A_SECOND = 10_000_000


class WalBroken(BackupError):
    """WAL that does not replay: a record is damaged or missing; `segment` names where."""

    def __init__(self, segment: str, said: str) -> None:
        super().__init__(
            f"The WAL segment {segment} is broken: {said}",
            mend="Take this segment from another copy (the replica, the server's pg_wal); without one, nothing behind "
            "it can be reached from a base before it.",
        )
        self.segment = segment


@dataclass(frozen=True)
class Commit:
    """The end of a transaction, a commit or an abort: where its record *begins*, and the server's clock."""

    lsn: Lsn
    time: datetime
    committed: bool = True


@dataclass(frozen=True)
class RestorePoint:
    """A named place, where its record *begins*; what `pg_create_restore_point` returned is its end."""

    lsn: Lsn
    name: str


def commits(tools: PostgresTools, directory: Path, start: Lsn, end: Lsn, timeline: int) -> Iterator[Commit]:
    """Every commit and abort in `[start, end)`, in order. See `check_window` for the parameters and errors."""
    for lsn, description in _records(tools, directory, start, end, timeline, manager="Transaction"):
        if ended := _ENDED.fullmatch(description):
            moment = datetime.strptime(ended[2], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
            yield Commit(lsn, moment, ended[1] == "COMMIT")


def restore_points(
    tools: PostgresTools, directory: Path, start: Lsn, end: Lsn, timeline: int
) -> Iterator[RestorePoint]:
    """Every restore point in `[start, end)`, in order. See `check_window` for the parameters and errors."""
    for lsn, description in _records(tools, directory, start, end, timeline, manager="XLOG"):
        if description.startswith(_RESTORE_POINT):
            yield RestorePoint(lsn, description.removeprefix(_RESTORE_POINT))


def check_window(tools: PostgresTools, directory: Path, start: Lsn, end: Lsn, timeline: int) -> Lsn:
    """Prove that the records from `start` up to `end` follow on each other, undamaged; returns where the last begins.

    `directory` holds the segments of `[start, end)`, `start` and `end` being boundaries; `timeline` is the newest, and
    of a place that several timelines have a segment for, its newest up to that one is read. A record that goes on
    behind `end` is taken for good. Raises `WalBroken` when one is damaged, when a segment is missing, or when the last
    one holds no record.
    """
    with _one_timeline(directory, start, end, timeline) as segments:
        for _ in segments.dump(tools, start, "--quiet"):
            pass
        last = segment_start(Lsn(end - 1), segments.segment_bytes)
        begins = None
        for line in segments.dump(tools, last):
            if record := _RECORD.fullmatch(line):
                begins = Lsn.parse(record[2])
        if begins is None:
            raise WalBroken(segment_name(timeline, last, segments.segment_bytes), "no record begins in it.")
        return begins


def _records(
    tools: PostgresTools, directory: Path, start: Lsn, end: Lsn, timeline: int, *, manager: str
) -> Iterator[tuple[Lsn, str]]:
    """Where each record of a resource manager begins, and what pg_waldump says of it."""
    with (
        _one_timeline(directory, start, end, timeline) as segments,
        closing(segments.dump(tools, start, f"--rmgr={manager}")) as lines,
    ):
        for line in lines:
            record = _RECORD.fullmatch(line)
            if record and record[1] == manager:
                yield Lsn.parse(record[2]), record[3]


@dataclass(frozen=True)
class _Segments:
    """The segments of a window as one timeline's, in a directory of their own: `names` are what they are called."""

    directory: Path
    segment_bytes: int
    end: Lsn
    timeline: int
    names: dict[str, str]

    def dump(self, tools: PostgresTools, start: Lsn, *options: str) -> Generator[str, None, None]:
        """What pg_waldump says of each record from `start` on; raises `WalBroken` where it stops."""
        argv = [
            *(tools.pg_waldump, f"--path={self.directory}", f"--start={start}", f"--end={self.end}"),
            *(f"--timeline={self.timeline}", *options),
        ]
        patience = STALL_LIMIT + timedelta(seconds=(self.end - start) / _SLOWEST_BYTES_A_SECOND)
        try:
            with run_source(argv, environment={"TZ": "UTC"}, stall_limit=patience) as chunks:
                yield from _records_of(chunks)
        except SourceStalled:
            raise
        except SourceFailed as failed:
            raise self._broken(failed.what) from None

    def _broken(self, said: str) -> WalBroken:
        said = said.partition(": ")[2] or said
        if named := _SEGMENT.search(said):
            name = named[0]
        else:
            places = [Lsn.parse(place) for place in _LSN.findall(said)] or [Lsn(self.end - 1)]
            name = segment_name(self.timeline, places[-1], self.segment_bytes)
        return WalBroken(self.names.get(name, name), said)


@contextmanager
def _one_timeline(directory: Path, start: Lsn, end: Lsn, timeline: int) -> Iterator[_Segments]:
    """pg_waldump follows no switch of timelines: for it the older ones' segments are called after the newest."""
    found = sorted(path for path in directory.iterdir() if is_segment(path.name) and timeline_of(path.name) <= timeline)
    if not found:
        raise ValueError(f"{directory} holds no WAL segments")
    segment_bytes = max(path.stat().st_size for path in found)
    if segment_bytes.bit_count() != 1:
        raise WalBroken(found[0].name, f"it has {segment_bytes} bytes, which no segment has.")
    newest = {segment_lsn(path.name, segment_bytes): path for path in found}  # of one place the newest comes last
    names: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="synapse-waldump-") as place:
        for at in range(segment_start(start, segment_bytes), end, segment_bytes):
            name = segment_name(timeline, Lsn(at), segment_bytes)
            if Lsn(at) not in newest:
                raise WalBroken(name, "it is missing.")
            path = newest[Lsn(at)]
            if (size := path.stat().st_size) != segment_bytes:
                raise WalBroken(path.name, f"it has {size} bytes, not {segment_bytes}.")
            names[name] = path.name
            Path(place, name).symlink_to(path.absolute())
        yield _Segments(Path(place), segment_bytes, end, timeline, names)


def _records_of(chunks: Iterator[bytes]) -> Iterator[str]:
    """One text a record: a name in it may hold line ends."""
    rest, record = "", ""
    for chunk in _text(chunks):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if not line.startswith(_BEGIN):
                record = f"{record}\n{line}" if record else ""
                continue
            if record:
                yield record
            record = line
    if record:
        yield record


def _text(chunks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        yield decoder.decode(chunk)
