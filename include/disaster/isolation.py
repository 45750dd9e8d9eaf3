"""The places of a drill: beside everything that is live, of its own name, and gone without a trace when it is over.

Each bears the run's stamp (`drill_20261122t103712123456`): so two drills never meet, a task that is cleared finds its
places again, and what a killed one leaves is known for what it is, and how old. Its login may create databases and
write to the bucket for what is looked at; it need not, and in production must not, be able to write to anything live.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from include.errors import BackupError
from include.recovery.moments.places import Places
from include.recovery.scratch import APPLICATION, drop_database

if TYPE_CHECKING:
    from include.pipeline.store import Bucket, ObjectVersion
    from include.sources.postgres.login import DatabaseLogin

log = logging.getLogger(__name__)

BELOW = "drills/"
"""The prefix of drills' objects in the bucket for what is looked at."""
_AT_ONCE = 8
_STAMP = r"(?P<stamp>\d{8}t\d{12})"
_DATABASE, _OBJECTS, _DIRECTORY = (
    re.compile(pattern, re.ASCII) for pattern in (f"drill_{_STAMP}", f"{BELOW}{_STAMP}/.*", f"drill-{_STAMP}(-plan)?")
)


class NotErased(BackupError):
    """Something that a drill made and that could not be removed."""


def stamp(moment: datetime, run_id: str) -> str:
    """The name of a run: its moment, and in place of the microseconds six digits of what Airflow calls it.

    Only these two stay as they are when a run is cleared, and whoever triggers it may choose a moment that another run
    has, too.
    """
    digits = int.from_bytes(hashlib.sha256(run_id.encode()).digest()) % 10**6
    return f"{moment.astimezone(UTC):%Y%m%dt%H%M%S}{digits:06}"


def directory(run: str) -> str:
    """What a run's directory is called, on the worker."""
    return f"drill-{run}"


def plan_directory(run: str) -> str:
    """What a run's directory is called while it is planned."""
    return f"{directory(run)}-plan"


def drill_places(
    run: str,
    *,
    server: DatabaseLogin | None,
    bucket: Bucket | None,
    root: Path | None,
    tables: tuple[str, ...] = (),
) -> Places:
    """The places of one drill; what has no server, bucket or root does not come back."""
    return Places(
        server=server,
        database=f"drill_{run}" if server else None,
        bucket=bucket,
        prefix=f"{BELOW}{run}/" if bucket else "",
        configuration=root / directory(run) / "configuration" if root else None,
        components=(),
        live=False,
        run=run,
        tables=tables,
    )


def erase(places: Places, root: Path) -> list[str]:
    """Remove everything that a drill made: its database, every version of its objects, its directory.

    What is gone already is no error. Raises `NotErased` naming all that stays, when everything else is gone.
    """
    if places.live:
        raise ValueError("only a drill is erased")
    gone: list[str] = []
    stays: list[str] = []
    if places.server and places.database:
        _attempt(partial(_drop, places.server, places.database), gone, stays)
    if places.bucket:
        _attempt(partial(_empty, places.bucket, places.prefix), gone, stays)
    for name in (directory(places.run), plan_directory(places.run)):
        _attempt(partial(_remove, root / name), gone, stays)
    if stays:
        raise NotErased(
            f"{len(stays)} places of the drill {places.run} stay: {'; '.join(stays)}.",
            mend="Mend what they name and clear this task; storage_lifecycle tries again when they are old.",
        )
    return gone


@dataclass(frozen=True)
class Leftover:
    """What a drill left that was killed with everything around it: where, whose, since when, and how it goes."""

    what: str
    run: str
    made: datetime
    remove: Callable[[], str] = field(repr=False, compare=False)


def leftovers(
    *, server: DatabaseLogin | None, bucket: Bucket | None, root: Path | None, before: datetime
) -> list[Leftover]:
    """Every place of a drill whose name is from before a moment, oldest first.

    A drill takes hours, so `before` is days ago; one that was cleared, or asked for with an old moment, runs under an
    old name all the same: the caller knows that none runs.
    """
    found: list[Leftover] = []
    if server:
        with server.connect(application_name=APPLICATION, autocommit=True) as session:
            for (name,) in session.execute("SELECT datname::text FROM pg_database"):
                _note(found, f"the database {name}", _DATABASE.fullmatch(name), partial(_drop, server, name))
    if bucket:
        for prefix in sorted({"/".join(version.key.split("/")[:2]) + "/" for version in bucket.versions(BELOW)}):
            _note(found, f"objects below {prefix}", _OBJECTS.fullmatch(prefix), partial(_empty, bucket, prefix))
    if root and root.is_dir():
        for path in root.iterdir():
            _note(found, f"the directory {path.name}", _DIRECTORY.fullmatch(path.name), partial(_remove, path))
    return sorted((each for each in found if each.made < before), key=lambda each: (each.made, each.what))


def remove(found: Sequence[Leftover]) -> list[str]:
    """Remove what dead drills left; returns what went. Raises `NotErased` naming all that stays."""
    gone: list[str] = []
    stays: list[str] = []
    for each in found:
        _attempt(each.remove, gone, stays)
    if stays:
        raise NotErased(
            f"{len(stays)} of {len(found)} leftovers of drills stay: {'; '.join(stays)}.",
            mend="Mend what they name; the next run of storage_lifecycle tries again.",
        )
    return gone


def _note(found: list[Leftover], what: str, name: re.Match[str] | None, remove: Callable[[], str]) -> None:
    if name is None:
        return
    try:
        made = datetime.strptime(name["stamp"], "%Y%m%dt%H%M%S%f").replace(tzinfo=UTC)
    except ValueError:  # no moment, so no drill's
        return
    found.append(Leftover(what, name["stamp"], made, remove))


def _attempt(remove: Callable[[], str], gone: list[str], stays: list[str]) -> None:
    try:
        if told := remove():
            log.info("Removed %s.", told)
            gone.append(told)
    except (BackupError, OSError) as error:
        stays.append(str(getattr(error, "what", error)))


def _drop(server: DatabaseLogin, name: str) -> str:
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        try:
            # An application that was started on it may not have let go yet.
            there = drop_database(session, name)
        except psycopg.Error as error:
            raise NotErased(
                f"the database {name} ({error.diag.message_primary or type(error).__name__})",
                mend="End whoever is connected to it, and clear the task.",
            ) from None
    return f"the database {name}" if there else ""


def _empty(bucket: Bucket, prefix: str) -> str:
    for upload in bucket.unfinished_uploads(prefix):
        bucket.abort(upload)

    def remove(version: ObjectVersion) -> None:
        bucket.delete_version(version.key, version.version_id)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="erase") as pool:
        versions = sum(1 for _ in pool.map(remove, bucket.versions(prefix)))
    return f"{versions} versions of objects in {bucket}/{prefix}" if versions else ""


def _remove(path: Path) -> str:
    if not path.exists():
        return ""
    shutil.rmtree(path)
    return f"the directory {path.name}"
