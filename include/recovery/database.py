"""A database, back from its dumps (R5.1).

It is restored beside what exists, compared with the inventory, then put in place.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.errors import BackupError
from include.pipeline.process import child_environment, run_sink
from include.recovery.opened import OpenedBackup
from include.repository.contents import GLOBALS, INVENTORY, POST_DATA, PRE_DATA, SETTINGS, component_dump
from include.sources.postgres.inventory import (
    Inventory,
    compare,
    count_large_objects,
    table_contents,
    take_inventory,
)
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import CATCH_ALL, list_relations
from include.sources.postgres.tools import PostgresTools, find_tools

log = logging.getLogger(__name__)

APPLICATION = "synapse-backups"

_INDEX_JOBS = 2
_DIFFERENCES_TOLD = 5
_IDENTIFIER = r"(?:\"(?:[^\"]|\"\")+\"|[^\s;\"]+)"
_ABOUT = re.compile(
    rf"(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL FOR {_IDENTIFIER} ON) "
    rf"(?P<kind>ROLE|TABLESPACE) (?P<name>{_IDENTIFIER})"
)
_GRANTED = re.compile(
    rf"(?:GRANT|REVOKE) (?:{_IDENTIFIER}|[A-Z, ]+ ON [A-Z]+ {_IDENTIFIER}) (?:TO|FROM) (?P<name>{_IDENTIFIER})"
)
_GRANTOR = re.compile(rf"(?<=^GRANT )({_IDENTIFIER} TO .*) GRANTED BY {_IDENTIFIER}(?=;$)")
_GRANTORS_MINDED = 16_00_00
_NAMED_DATABASE = re.compile(rf"\bDATABASE {_IDENTIFIER}")
_BETWEEN = re.compile(r"(?:\s+|(?:--|\\)[^\n]*)*+")
_STATEMENT = re.compile(r"(?:'(?:[^']|'')*+'|\"(?:[^\"]|\"\")*+\"|[^'\";])*+;")

# What a database may have set for its users, and not for its restore: who they are, what they may do and for how long,
# and how what they send is understood. Row triggers that fire for replicas alone stay asleep.
_UNDISTURBED = {
    "role": "none",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": r"read\ committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
}
_UNDISTURBED_SUPERUSER = {"session_replication_role": "origin"}
_UNDISTURBED_SUPERUSER_SINCE_17 = {"event_triggers": "off", "transaction_timeout": "0"}
_TRIGGERS_TURNED_OFF = 17_00_00
_MAPPING_OPTIONS = """
    SELECT option_name FROM pg_user_mappings, pg_options_to_table(umoptions) WHERE srvname = %s AND usename = %s
"""
_OF_THE_DATABASE = re.compile(
    r"^\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) \S+ DATABASE) "
)

_EVENT_TRIGGER = re.compile(r"^\d+; \d+ \d+ (?:(?:COMMENT|SECURITY LABEL) \S+ )?EVENT TRIGGER ")


class DatabaseExists(BackupError):
    """A database of the target's name is there already."""


class RestoreDiffers(BackupError):
    """What was restored is not what was backed up."""


@dataclass(frozen=True)
class RestoredDatabase:
    """A database that was restored and proved: its name, what it holds, and what could not come along."""

    name: str
    tables: int
    rows: int


def restore_database(backup: OpenedBackup, *, server: DatabaseLogin, name: str, scratch: Path) -> RestoredDatabase:
    """Bring the whole database back as `name` on `server` (a superuser's login), roles included.

    Everything is restored under a scratch name, compared table by table with the inventory, and renamed at the end:
    until then no database is called `name`. A restore that fails removes the scratch one. Raises `DatabaseExists`,
    `RestoreDiffers`, or whatever stopped it.
    """
    if _exists(server, name):
        raise DatabaseExists(
            f"The database {name} exists already on {server.host}:{server.port}.",
            mend="Restore under another name, or rename the one that is there.",
        )
    restore = _Restore(backup, server, name, scratch)
    return restore.run()


def restore_sample(backup: OpenedBackup, component: str, *, server: DatabaseLogin, scratch: Path) -> RestoredDatabase:
    """Restore one component into a scratch database, compare it with the inventory, and drop it again (R4.5).

    Nothing else is needed of the server than the right to create a database: owners and privileges stay out. Raises
    `RestoreDiffers`.
    """
    restore = _Restore(backup, server, component, scratch)
    return restore.sample(component)


class _Restore:
    """One restore, into one scratch database."""

    def __init__(self, backup: OpenedBackup, server: DatabaseLogin, name: str, scratch: Path) -> None:
        self._backup, self._server, self._name, self._scratch = backup, server, name, scratch
        self._scratch_name = f"restore_{secrets.token_hex(4)}_{name}".encode()[:63].decode(errors="ignore")
        self._login = replace(server, dbname=self._scratch_name, options=_undisturbed(server))
        self._tools = _tools_for(backup, server)
        document = json.loads(b"".join(backup.read(INVENTORY)))
        self._inventory = Inventory.from_json(document)
        self._components: dict[str, list[str]] = document["components"]

    def run(self) -> RestoredDatabase:
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as directory:
            pre_data = self._spooled(PRE_DATA, Path(directory))
            post_data = self._spooled(POST_DATA, Path(directory))
            try:
                self._restore_roles()
                self._create_as_it_was(pre_data)
                self._run_restore(pre_data)
                self._restore_user_mappings()
                self._restore_rows()
                awake, asleep = self._without_event_triggers(post_data)
                self._run_restore(post_data, f"--jobs={_INDEX_JOBS}", f"--use-list={asleep}")
                with self._login.connect(application_name=APPLICATION, autocommit=False) as session:
                    restored = take_inventory(session, list_relations(session))
                self._must_equal(compare(self._inventory, restored))
                self._run_restore(post_data, f"--use-list={awake}")
                self._execute([f"ALTER DATABASE {_quoted(self._scratch_name)} RENAME TO {_quoted(self._name)}"])
            except BaseException:
                self._drop()
                raise
        return RestoredDatabase(self._name, len(restored.tables), restored.rows)

    def sample(self, component: str) -> RestoredDatabase:
        unowned = ("--no-owner", "--no-privileges", "--no-security-labels", "--no-tablespaces")
        expected = frozenset(self._components[component])
        try:
            self._execute([f"CREATE DATABASE {_quoted(self._scratch_name)} TEMPLATE template0{self._encoding()}"])
            self._pipe(PRE_DATA, *unowned)
            self._pipe(component_dump(component), *unowned)
            with self._login.connect(application_name=APPLICATION, autocommit=False) as session:
                tables = [table for table in list_relations(session).tables if str(table) in self._inventory.tables]
                restored = Inventory(table_contents(session, tables), {})
            self._must_equal(compare(self._inventory, restored, expected))
            if component == CATCH_ALL:
                self._must_have_large_objects()
        finally:
            self._drop()
        return RestoredDatabase(component, len(expected), sum(restored.tables[name].rows for name in expected))

    def _encoding(self) -> str:
        """The source's encoding, where this server's own is another: digests are of rows in it. C goes with each."""
        source = json.loads(b"".join(self._backup.read(SETTINGS)))["database"]["encoding"]
        query = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'template0'"
        with self._server.connect(application_name=APPLICATION, autocommit=True) as session:
            return "" if session.execute(query).fetchone() == (source,) else f" ENCODING '{source}' LOCALE 'C'"

    def _restore_roles(self) -> None:
        """Create the roles and tablespaces that are not there. One that is there is left exactly as it is."""
        with self._server.connect(application_name=APPLICATION, autocommit=True) as session:
            there = {("ROLE", name) for (name,) in session.execute("SELECT rolname FROM pg_roles")}
            there |= {("TABLESPACE", name) for (name,) in session.execute("SELECT spcname FROM pg_tablespace")}
            minds_grantors = session.info.server_version >= _GRANTORS_MINDED
        script = b"".join(self._backup.read(GLOBALS)).decode()
        wanted = [statement for statement in statements(script) if _subject(statement) not in there]
        if minds_grantors and self._backup.manifest.database.server_version < _GRANTORS_MINDED:
            # Before, anybody could be written down as a grantor; as pg_dumpall 16 does, whoever restores is.
            wanted = [_GRANTOR.sub(r"\1", statement) for statement in wanted]
        self._execute(wanted)

    def _create_as_it_was(self, pre_data: Path) -> None:
        """Create the scratch database with the locale, settings, owner and privileges that the dump recorded.

        pg_restore knows how to write that for every version, and only under the original name: its script is taken, and
        the name in it replaced.
        """
        listed = self._run(self._tools.pg_restore, "--create", "--list", str(pre_data)).splitlines()
        chosen = pre_data.with_suffix(".list")
        chosen.write_text("\n".join(line for line in listed if _OF_THE_DATABASE.match(line)) + "\n")
        script = self._run(*(self._tools.pg_restore, "--create", f"--use-list={chosen}", "--file=-", str(pre_data)))
        ours = f"DATABASE {_quoted(self._scratch_name)}"
        # The name stands before any literal in each of these statements: the first match is it. The others are settings
        # of pg_restore's own session, which an older server may not know.
        self._execute(
            _NAMED_DATABASE.sub(lambda _: ours, statement, count=1)
            for statement in statements(script)
            if _NAMED_DATABASE.search(statement)
        )

    def _restore_user_mappings(self) -> None:
        """Give the mappings to foreign servers their options again, which `pg_dump` tells to superusers only."""
        recorded = json.loads(b"".join(self._backup.read(SETTINGS)))["user_mappings"]
        with self._login.connect(application_name=APPLICATION, autocommit=True) as session:
            for mapping in recorded:
                known = {name for (name,) in session.execute(_MAPPING_OPTIONS, (mapping["server"], mapping["role"]))}
                options = [option.partition("=") for option in mapping["options"]]
                added = [
                    sql.SQL("ADD {} {}").format(sql.Identifier(name), sql.Literal(value))
                    for name, _, value in options
                    if name not in known
                ]
                role = sql.SQL("PUBLIC") if mapping["role"] == "public" else sql.Identifier(mapping["role"])
                if added:
                    session.execute(
                        sql.SQL("ALTER USER MAPPING FOR {} SERVER {} OPTIONS ({})").format(
                            role, sql.Identifier(mapping["server"]), sql.SQL(", ").join(added)
                        )
                    )

    def _restore_rows(self) -> None:
        """Every component side by side: no index or constraint is there yet that one would need of another."""
        dumps = [component_dump(name) for name in self._components if self._backup.has(component_dump(name))]
        with ThreadPoolExecutor(self._backup.policy.streams_at_once, thread_name_prefix="restore") as pool:
            for result in [pool.submit(self._pipe, dump) for dump in dumps]:
                result.result()

    def _pipe(self, artifact: str, *options: str) -> None:
        """Stream a dump into pg_restore; nothing of it touches the disk."""
        run_sink(
            self._pg_restore(*options), self._backup.read(artifact), environment=self._login.environment(APPLICATION)
        )

    def _pg_restore(self, *options: str) -> list[str]:
        database = make_conninfo(dbname=self._scratch_name)  # a bare name with "=" in it would be taken for one
        return [self._tools.pg_restore, "--exit-on-error", "--no-password", f"--dbname={database}", *options]

    def _run_restore(self, dump: Path, *options: str) -> None:
        run_sink(self._pg_restore(*options, str(dump)), (), environment=self._login.environment(APPLICATION))

    def _spooled(self, artifact: str, directory: Path) -> Path:
        """A dump on disk: pg_restore reads a table of contents twice, or jumps in it, only in a file."""
        path = directory / artifact.replace("/", "-")
        try:
            with path.open("wb") as file:
                file.writelines(self._backup.read(artifact))
        except OSError as error:
            raise BackupError(
                f"{path} could not be written: {error.strerror}.",
                mend="Make room there, or name another directory for temporary files.",
            ) from None
        return path

    def _must_have_large_objects(self) -> None:
        """Compare their number and bytes. Their digest has their owners in it, whom a sample leaves out."""
        expected = self._inventory.large_objects
        if expected is not None:
            with self._login.connect(application_name=APPLICATION, autocommit=True) as session:
                found = count_large_objects(session)
            if found != (expected.count, expected.bytes):
                self._must_equal(
                    [f"large objects: {found[0]} of {found[1]} bytes, not {expected.count} of {expected.bytes}"]
                )

    def _without_event_triggers(self, post_data: Path) -> tuple[Path, Path]:
        """Lists of what post-data holds: its event triggers, and all else, which one that is awake would see."""
        lines = self._run(self._tools.pg_restore, "--list", str(post_data)).splitlines()
        awake, asleep = post_data.with_suffix(".awake"), post_data.with_suffix(".asleep")
        awake.write_text("\n".join(line for line in lines if _EVENT_TRIGGER.match(line)) + "\n")
        asleep.write_text("\n".join(line for line in lines if not _EVENT_TRIGGER.match(line)) + "\n")
        return awake, asleep

    def _must_equal(self, differences: list[str]) -> None:
        if differences:
            told, untold = "; ".join(differences[:_DIFFERENCES_TOLD]), len(differences) - _DIFFERENCES_TOLD
            raise RestoreDiffers(
                f"What was restored of {self._backup.manifest.id} is not what was backed up: {told}"
                + (f"; and {untold} more." if untold > 0 else "."),
                mend="Do not use it. Restore from another backup, and keep this one for whoever looks into it.",
            )

    def _execute(self, script: Iterable[str]) -> None:
        """Run statements one by one on the server's maintenance database. They may hold passwords: none is repeated."""
        with self._server.connect(application_name=APPLICATION, autocommit=True) as session:
            session.execute("SET client_encoding = 'UTF8'")
            for statement in script:
                try:
                    session.execute(statement.encode())
                except psycopg.Error as error:
                    raise BackupError(
                        f"{' '.join(statement.split()[:3])} … was refused by {self._server.host}:{self._server.port}: "
                        f"{error.diag.message_primary or type(error).__name__}.",
                        mend="Restore with a superuser's login, into a server that has what the source had.",
                    ) from None

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), check=False)
        if done.returncode:
            raise BackupError(
                f"{Path(argv[0]).name} failed: {done.stderr.strip()}",
                mend="Check that its version is the dump's or newer.",
            )
        return done.stdout

    def _drop(self) -> None:
        """Remove the scratch database. When that fails too, its name says what it is, and the reaper finds it."""
        try:
            self._execute([f"DROP DATABASE IF EXISTS {_quoted(self._scratch_name)} WITH (FORCE)"])
        except BackupError as failure:
            log.warning("The scratch database %s could not be dropped: %s", self._scratch_name, failure)


def statements(script: str) -> Iterator[str]:
    """The statements of a script that pg_dump or pg_dumpall wrote, without comments and psql's own commands.

    Both write a quote within quotes doubled, and comments and commands between statements only.
    """
    position = _end(_BETWEEN.match(script))
    while position < len(script):
        statement = _STATEMENT.match(script, position)
        yield script[position : _end(statement)]
        position = _end(_BETWEEN.match(script, _end(statement)))


def _end(found: re.Match[str] | None) -> int:
    if found is None:
        raise BackupError(
            "The dump of the roles or of the database ends within a statement.", mend="Use another backup."
        )
    return found.end()


def _subject(statement: str) -> tuple[str, str] | None:
    """The role or tablespace that a statement makes or changes; a grant changes who gets it."""
    if about := _ABOUT.match(statement):
        return about["kind"], _unquoted(about["name"])
    granted = _GRANTED.match(statement)
    return ("ROLE", _unquoted(granted["name"])) if granted else None


def _exists(server: DatabaseLogin, name: str) -> bool:
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        return session.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None


def _tools_for(backup: OpenedBackup, server: DatabaseLogin) -> PostgresTools:
    """pg_restore is never older than the pg_dump that wrote, nor than the server it restores into."""
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        return find_tools(max(session.info.server_version // 10_000, backup.manifest.database.tools))


def _undisturbed(server: DatabaseLogin) -> str:
    """The options of sessions that restore: those of `server`, and over them what keeps a restore undisturbed."""
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        superuser = session.info.parameter_status("is_superuser") == "on"
        since_17 = session.info.server_version >= _TRIGGERS_TURNED_OFF
    settings = dict(_UNDISTURBED)
    if superuser:  # a sample's database has no settings, and its login may not change these
        settings |= _UNDISTURBED_SUPERUSER | (_UNDISTURBED_SUPERUSER_SINCE_17 if since_17 else {})
    return " ".join([server.options, *(f"-c {name}={value}" for name, value in settings.items())]).strip()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unquoted(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier
