"""The reaper: what dead runs left, wherever it lies, is found by what it is and removed after the policy's time.

It looks at tries in the bucket, unfinished uploads and probes, at sessions in the database, scratch databases and
temporary directories (law 5). First it finds, then it removes; each finding is looked at once more just before. Two
reapers at once do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from include.backup.scratch import recovery_directories, remove_directory, temporary_directories
from include.errors import BackupError
from include.pipeline.store import Bucket
from include.policy import Policy
from include.recovery.scratch import drop_scratch, scratch_databases
from include.repository.attempts import Attempts, DeadAttempt, Removed, find_probes, remove_probes
from include.repository.catalog import Catalog
from include.repository.layout import PROBES, named_by
from include.repository.manifest import Manifest, ManifestRefused
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.server import identify
from include.sources.postgres.sessions import APPLICATION, RunSession, end_session, run_sessions

log = logging.getLogger(__name__)

Kind = Literal["attempt", "probe", "session", "scratch database", "temporary directory"]


class WrongServer(BackupError):
    """A server that is not the one that is backed up: it cannot tell which tries live."""


class NotRemoved(BackupError):
    """Something that was found and could not be removed, or not wholly."""


@dataclass(frozen=True)
class Finding:
    """One thing that a dead run left: what and where, since when (aware UTC), its bytes, and why it is dead."""

    kind: Kind
    name: str
    where: str
    since: datetime
    bytes: int
    why: str
    remove: Callable[[], object] = field(repr=False, compare=False)
    """Look once more and remove it; raises `BackupError` with what stays."""


@dataclass(frozen=True)
class Leftovers:
    """All that was found, and in words what was left alone that a person should know of."""

    findings: tuple[Finding, ...]
    left_alone: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same for a program; sizes in bytes, moments in ISO 8601."""
        findings = [
            {name: getattr(each, name) for name in ("kind", "name", "where", "bytes", "why")}
            | {"since": each.since.isoformat()}
            for each in self.findings
        ]
        return {"findings": findings, "left_alone": list(self.left_alone)}


class Reaper:
    """Looks through one installation.

    `source` are logins of the server that is backed up, each of which ends its own sessions (the barrier's, the dump's,
    or a superuser's for both); `restores` is a login of the server where scratch databases are; `root` holds this
    worker's temporary directories, and `temporary` those of recoveries, each None where there are none. In `replica`,
    the second region's bucket, lies what a bucket's own replication brought of dead tries, and what was cut.
    """

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        *,
        source: Sequence[DatabaseLogin],
        restores: DatabaseLogin,
        root: Path | None,
        temporary: Path | None = None,
        replica: Catalog | None = None,
    ) -> None:
        self._catalog, self._policy = catalog, policy
        self._source, self._restores, self._root = tuple(source), restores, root
        self._temporary = temporary
        self._places = [(catalog.bucket, Attempts(catalog, self._living))]
        if replica is not None:
            self._places.append((replica.bucket, Attempts(replica, self._living, primary=catalog)))

    def find(self) -> Leftovers:
        """Everything that is dead now, by the object store's clock.

        Raises `BackupError` when a place cannot be looked at: nobody is declared dead by half a look.
        """
        self._must_be_the_source()
        before = self._policy.storage.attempts_reaped_after.before(self._catalog.bucket.clock())
        left_alone: list[str] = []
        findings = [
            *(each for place in self._places for each in self._found_attempts(*place, before, left_alone)),
            *(each for bucket, _ in self._places for each in self._found_probes(bucket, before)),
            *self._found_sessions(before, left_alone),
            *self._found_databases(before, left_alone),
            *self._found_directories(before),
        ]
        return Leftovers(tuple(findings), tuple(left_alone))

    def _must_be_the_source(self) -> None:
        """A standby, or another cluster, knows nothing of the sessions that live; raises `BackupError`."""
        newest = [entry.manifest for entry in self._catalog.entries() if entry.manifest][-1:]
        for login in self._source:
            with login.connect(application_name=APPLICATION, autocommit=True) as session:
                server = identify(session)
            if newest and server.system_identifier != newest[0].database.system_identifier:
                raise WrongServer(
                    f"{login} is system {server.system_identifier}, and {newest[0].id} was made of system "
                    f"{newest[0].database.system_identifier}.",
                    mend="Name the server that is backed up: only it knows which tries live. After a new cluster, make "
                    "a full backup first.",
                )

    def _found_attempts(
        self, bucket: Bucket, attempts: Attempts, before: datetime, left_alone: list[str]
    ) -> list[Finding]:
        found = attempts.find_dead(before=before)
        left_alone += attempts.kept
        return [
            Finding(
                "attempt",
                str(dead),
                f"{bucket}: {len(dead.objects)} versions, {len(dead.uploads)} unfinished uploads",
                dead.written,
                dead.bytes,
                "its backup names nothing of this"
                if dead.committed
                else "no manifest names it, and no session is its own",
                partial(_remove_attempt, attempts, dead),
            )
            for dead in found
        ]

    def _found_probes(self, bucket: Bucket, before: datetime) -> list[Finding]:
        probes = find_probes(bucket, before=before)
        if probes is None:
            return []
        return [
            Finding(
                "probe",
                f"{PROBES}…",
                f"{bucket}: {len(probes.objects)} versions, {len(probes.uploads)} unfinished uploads",
                probes.written,
                sum(each.size for each in probes.objects) + sum(each.bytes for each in probes.uploads),
                "a check wrote it, and needs it for a moment only",
                lambda: _whole(remove_probes(bucket, probes)),
            )
        ]

    def _found_sessions(self, before: datetime, left_alone: list[str]) -> list[Finding]:
        found = []
        for session in self._sessions():
            why, idle_since = self._why_dead(session, before, left_alone)
            if why and session.since is not None:
                login = next((each for each in self._source if each.user == session.role), self._source[0])
                found.append(
                    Finding(
                        "session",
                        session.application,
                        f"{login.host}:{login.port}, pid {session.pid}",
                        session.since,
                        0,
                        why,
                        partial(end_session, login, session, idle_since=idle_since),
                    )
                )
        return found

    def _found_databases(self, before: datetime, left_alone: list[str]) -> list[Finding]:
        server, found = self._restores, []
        for database in scratch_databases(server):
            if database.made is None:
                left_alone.append(
                    f"The database {database.name} of {server.host}:{server.port} is called like a scratch database "
                    "and bears no mark: whoever knows that nobody uses it may drop it."
                )
            elif database.made < before and not database.used:
                found.append(
                    Finding(
                        "scratch database",
                        database.name,
                        f"{server.host}:{server.port}",
                        database.made,
                        database.bytes,
                        "a restore made it and did not end it, and nobody is connected to it",
                        partial(drop_scratch, server, database),
                    )
                )
        return found

    def _found_directories(self, before: datetime) -> list[Finding]:
        of_runs = temporary_directories(self._root) if self._root else []
        of_recoveries = recovery_directories(self._temporary) if self._temporary else []
        return [
            Finding(
                "temporary directory",
                directory.path.name,
                str(directory.path.parent),
                directory.changed,
                directory.bytes,
                "nobody holds it, and nothing in it changes",
                partial(remove_directory, directory),
            )
            for directory in (*of_runs, *of_recoveries)
            if directory.changed < before
        ]

    def _why_dead(
        self, session: RunSession, before: datetime, left_alone: list[str]
    ) -> tuple[str | None, datetime | None]:
        """Why a session serves nobody any more, None when it may; and since when it must have been idle for that.

        Once its backup is committed, by whichever try, nothing that it holds is of use to anybody. Before that, it must
        have been idle in its transaction for the policy's time; its try is dead, and found, when it has been ended.
        """
        backup = named_by(session.backup)
        if backup is None:
            return None, None
        try:
            committed: Manifest | None = self._catalog.find(backup)
        except ManifestRefused as refused:
            left_alone.append(f"{session.application} (pid {session.pid}) is left alone: {refused.what}")
            return None, None
        if committed is not None:
            return f"{backup} was committed by attempt {committed.attempt}", None
        if session.state == "idle in transaction" and session.since is not None and session.since < before:
            return "it has been idle in its transaction for longer than any try takes", session.since
        return None, None

    def _sessions(self) -> list[RunSession]:
        """Each as the login sees it that sees most."""
        seen: dict[int, RunSession] = {}
        for login in self._source:
            for session in run_sessions(login):
                if session.pid not in seen or seen[session.pid].since is None:
                    seen[session.pid] = session
        return list(seen.values())

    def _living(self) -> frozenset[str]:
        return frozenset(session.attempt for session in self._sessions())


def remove(findings: Sequence[Finding]) -> list[str]:
    """Remove each; what stays is logged and returned in words, and keeps no other from being removed."""
    stays = []
    for finding in findings:
        try:
            finding.remove()
        except BackupError as error:
            log.warning("%s %s stays: %s", finding.kind, finding.name, error)
            stays.append(f"{finding.kind} {finding.name}: {error}")
        else:
            log.info("Removed %s %s (%s): %s.", finding.kind, finding.name, finding.where, finding.why)
    return stays


def _remove_attempt(attempts: Attempts, dead: DeadAttempt) -> None:
    _whole(attempts.remove(dead))


def _whole(removed: Removed) -> None:
    if removed.refused:
        raise NotRemoved(
            f"{len(removed.refused)} objects stay ({removed.objects} are gone): {removed.refused[0]}",
            mend="Give the login the right to delete versions, or wait for the end of their Object Lock.",
        )
