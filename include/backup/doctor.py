"""Everything that a backup needs, examined at once: the checks that *prepare* insists on, and a few more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from include.backup.checks import clock, database, store, worker
from include.backup.checks.check import Check, Facts, Finding, Subject, examine
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.sources.configuration import Configuration
from include.sources.postgres.login import DatabaseLogin

Login = Callable[[], DatabaseLogin]


@dataclass(frozen=True)
class Surroundings:
    """What there is to look at: each call makes its part, raises why it cannot, or `Unseen` where nobody named it.

    `temporary` is the directory for temporary files, `keyring_file` None where no keyring is named, `restore_server` a
    superuser's login where a restore would go, None where none is planned.
    """

    temporary: Path
    keyring_file: Path | None
    keyring: Callable[[], Keyring]
    primary: Callable[[], Bucket]
    replica: Callable[[], Bucket]
    objects: Callable[[], Bucket]
    configuration: Callable[[], Configuration]
    barrier: Login
    dump: Login
    replication: Login
    scratch: Login
    restore_server: Login | None = None


def diagnose(surroundings: Surroundings) -> list[Finding]:
    """Examine all of it, subjects side by side, and return what was found; nothing that a check meets is raised.

    What is written as a probe is deleted again.
    """
    [found] = examine([Subject("policy", [Check("contents", _policy_loads)])])
    subjects = [] if found.verdict == "failed" else _subjects(surroundings, load_policy())
    return [found, *examine([_tools(), *subjects])]


def _policy_loads() -> Facts:
    """The loader refuses a contradiction with its line."""
    return {"components": len(load_policy().components)}


def _subjects(found: Surroundings, policy: Policy) -> Iterator[Subject]:
    yield Subject("disk", [Check("room", partial(worker.disk, found.temporary, policy))])
    yield _keyring(found, policy)
    yield from _database(found, policy)
    if found.restore_server is not None:
        yield _restore_server(found.restore_server)
    yield Subject(
        "objects",
        [
            Check("versions", lambda: store.source(found.objects())),
            Check("uploads under way", lambda: store.uploads_told(found.objects())),
        ],
        door=Check("connection", lambda: store.reach(found.objects())),
    )
    yield Subject(
        "configuration", [], door=Check("checkout", lambda: worker.configuration(found.configuration(), policy))
    )
    yield _bucket("primary", found.primary, policy.storage.primary.region, policy)
    yield _bucket("replica", found.replica, policy.storage.replica.region, policy)


def _tools() -> Subject:
    return Subject(
        "tools",
        [
            Check("PostgreSQL's", worker.postgres_tools),
            Check("git", worker.git),
            Check("zstd and AES", worker.sealing),
            Check("s3cmd", worker.s3cmd),
        ],
    )


def _keyring(found: Surroundings, policy: Policy) -> Subject:
    checks = [Check("rotation", partial(worker.keyring_age, found.keyring, policy))]
    if found.keyring_file is not None:
        checks.append(Check("owner", partial(worker.keyring_owner, found.keyring_file)))
    return Subject("keyring", checks, door=Check("keys", partial(worker.keyring_opens, found.keyring)))


def _database(found: Surroundings, policy: Policy) -> Iterator[Subject]:
    barrier, dump, replication, scratch = found.barrier, found.dump, found.replication, found.scratch
    yield Subject("barrier login", _rights(barrier, "barrier", database.BARRIER), door=_connection(barrier))
    yield Subject(
        "dump login",
        [
            *_rights(dump, "dump", database.DUMP),
            Check("same database", lambda: database.same_database(barrier(), dump())),
            Check("tools", lambda: database.tools(dump())),
            Check("settings", lambda: database.settings(dump(), policy)),
            Check("references", lambda: database.references(dump(), policy)),
            Check("clock", lambda: clock.of_database(dump(), policy)),
        ],
        door=_connection(dump),
    )
    yield Subject(
        "replication login",
        [
            *_rights(replication, "replication", database.REPLICATION),
            Check("same database", lambda: database.same_database(barrier(), replication())),
            Check("room", lambda: database.room_to_replicate(replication())),
            Check("let in", lambda: database.lets_replicate(replication())),
        ],
        door=_connection(replication),
    )
    yield Subject(
        "scratch login",
        [
            *_rights(scratch, "scratch", database.SCRATCH),
            Check("tools", lambda: database.tools(scratch())),
            Check("timeouts", lambda: database.timeouts(scratch())),
        ],
        door=_connection(scratch),
    )


def _restore_server(login: Login) -> Subject:
    return Subject(
        "restore server",
        [
            Check("rights", lambda: database.privileges(login(), database.RESTORE)),
            Check("tools", lambda: database.tools(login())),
        ],
        door=_connection(login),
    )


def _connection(login: Login) -> Check:
    return Check("connection", lambda: database.reach(login()))


def _rights(login: Login, kind: str, needed: tuple[database.Privilege, ...]) -> list[Check]:
    return [
        Check("rights", lambda: database.privileges(login(), needed)),
        Check("no more", lambda: database.no_more(login(), database.AT_MOST[kind])),
    ]


def _bucket(name: str, bucket: Callable[[], Bucket], region: str, policy: Policy) -> Subject:
    return Subject(
        name,
        [
            Check("versions", lambda: store.versioned(bucket())),
            Check("writes and reads", lambda: store.round_trip(bucket())),
            Check("uploads in parts", lambda: store.multipart(bucket())),
            Check("conditional writes", lambda: store.conditional_writes(bucket())),
            Check("checksums", lambda: store.checksums(bucket())),
            Check("object lock", lambda: store.locks(bucket())),
            Check("region", lambda: store.region(bucket(), region)),
            Check("clock", lambda: clock.of_store(bucket(), policy)),
        ],
        door=Check("connection", lambda: store.reach(bucket())),
    )
