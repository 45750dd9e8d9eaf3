"""Whether database, files and configuration that came back are one application again (R5.2)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from include.pipeline.process import child_environment
from include.recovery.database import undisturbed_login
from include.recovery.scratch import APPLICATION
from include.recovery.validation.expectations import Measured, Question, answer

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from include.policy import Policy
    from include.recovery.validation.recovered import Expected, Recovered
    from include.recovery.validation.validation import Validation

    Session = psycopg.Connection[TupleRow]

MISSING, UNHELD = "missing", "in no backup, written after the last one"
_CANNOT = "cannot be asked"
_VALUE = re.compile(r': ".*', re.DOTALL)
"""What PostgreSQL says of a row's value, as in `invalid input syntax for type integer: "…"`."""


def check_application_state(recovered: Recovered, policy: Policy) -> Validation:
    """Every object that the database names, the commit, the schema version, and the policy's invariants.

    What did not come back is not asked for; a query over tables of which only some came back is left out. Raises
    `BackupError` when something could not be looked at.
    """
    began = datetime.now(UTC)
    return answer("application_state", began, list(_questions(recovered, policy)))


def _questions(recovered: Recovered, policy: Policy) -> Iterator[Question]:
    expected = recovered.expected
    sizes: dict[str, int] | None = None
    if recovered.bucket is not None:
        start = len(recovered.prefix)
        sizes = {each.key[start:]: each.size for each in recovered.bucket.objects(recovered.prefix)}
        if expected.objects is not None:
            yield Question("number", (Measured("objects", expected.objects, len(sizes)),), "at least")
    if recovered.configuration is not None and expected.commit is not None:
        yield from _configuration(recovered.configuration, expected.commit)
    if recovered.database is None:
        return
    login = undisturbed_login(recovered.database)
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        session.read_only = True
        session.execute("SET TimeZone = 'UTC'")
        if sizes is not None:
            for statement in policy.sources.objects.references:
                yield from _named(session, statement, sizes, expected)
        if recovered.configuration is not None and expected.commit is not None:
            yield from _schema_version(session, recovered.configuration, policy, expected)
        yield from _invariants(session, policy, expected)


def _configuration(checkout: Path, commit: str) -> Iterator[Question]:
    """At the commit that came back, and as it was committed; what git ignores is not asked for."""
    at, said = _git(checkout, "rev-parse", "HEAD")
    yield Question("commit", (Measured("the configuration", commit, said if at else MISSING),))
    done, changed = _git(checkout, "status", "--porcelain")
    if done:
        paths = sorted(line[3:] for line in changed.splitlines())
        found = f"{len(paths)} changed: {', '.join(paths[:3])}" if paths else "clean"
        yield Question("state", (Measured("the configuration", "clean", found),))


def _git(checkout: Path, *arguments: str) -> tuple[bool, str]:
    done = subprocess.run(
        ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, env=child_environment(), check=False
    )
    return done.returncode == 0, done.stdout.rstrip()


def _named(session: Session, statement: str, sizes: dict[str, int], expected: Expected) -> Iterator[Question]:
    """Every object that this query names is there, in the size that it says, if it says one."""
    try:
        rows = session.execute(statement.encode()).fetchall()
    except psycopg.Error as error:
        yield from _unanswered("object", statement, error, expected)
        return
    unheld = set(expected.unheld)
    answers = []
    for key, *stated in rows:
        if key is None:
            continue
        size = sizes.get(key)
        if size is None:
            found, lost = (UNHELD, UNHELD) if key in unheld else (MISSING, "there")
            answers.append(Measured(key, lost, found))
        elif stated and stated[0] is not None:
            answers.append(Measured(key, f"{int(stated[0]):,} bytes", f"{size:,} bytes"))
        else:
            answers.append(Measured(key, "there", "there"))
    yield Question("object", tuple(answers), together=f"all that the database names ({statement})")
    if gone := [each for each in answers if each.found == UNHELD]:
        yield Question("lost object", (Measured("all that the database names", len(unheld), len(gone)),), "at most")


def _schema_version(session: Session, checkout: Path, policy: Policy, expected: Expected) -> Iterator[Question]:
    """The database has the schema that the configuration is for."""
    version, subject = policy.recovery.expectations.schema_version, "the database"
    try:
        row = session.execute(version.database.encode()).fetchone()
    except psycopg.Error as error:
        yield from _unanswered("schema version", version.database, error, expected)
        return
    if row is None and expected.tables:
        return
    try:
        wanted = (checkout / version.configuration).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        wanted = f"what the configuration says, which has no {version.configuration}"
    yield Question("schema version", (Measured(subject, wanted, MISSING if row is None else str(row[0])),))


def _invariants(session: Session, policy: Policy, expected: Expected) -> Iterator[Question]:
    """No row is as it must not be. How many are is told, and nothing of them."""
    answers = []
    for name, statement in policy.recovery.expectations.invariants.items():
        try:
            counted = b"SELECT count(*) FROM (" + statement.encode() + b"\n) AS unwanted"
            (rows,) = session.execute(counted).fetchone() or (0,)
        except psycopg.Error as error:
            yield from _unanswered("rows against the invariant", name, error, expected)
        else:
            answers.append(Measured(name, 0, int(rows)))
    yield Question("rows against the invariant", tuple(answers))


def _unanswered(name: str, subject: str, error: psycopg.Error, expected: Expected) -> Iterator[Question]:
    """A query that fails is a failure, unless it is about a table that was not asked for."""
    if expected.tables and isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return
    said = _VALUE.sub(": …", error.diag.message_primary or type(error).__name__)
    yield Question(name, (Measured(subject, "an answer", f"it {_CANNOT}: {said}"),))
