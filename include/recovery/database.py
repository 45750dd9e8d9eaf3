"""A database, back from its dumps (R5.1).

It is restored beside what exists, compared with the inventory, then put in place.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psycopg
from psycopg import sql

from include.errors import BackupError
from include.recovery.dump_script import IDENTIFIER, statements, subject, without_grantor
from include.recovery.pg_restore import PgRestore
from include.recovery.post_data import Turns, in_turn, indexes_of, upgrading
from include.recovery.replacement import swap_databases
from include.recovery.scratch import drop_database, mark
from include.recovery.selection import (
    ALWAYS_LEFT_OUT,
    FOREIGN_KEY,
    NAMED_WHEN_LEFT_OUT,
    REFRESH,
    Part,
    choose_part,
    drop_surplus,
    entries_at_once,
    entries_of,
    known_components,
    loose_sequences,
    named_when_left_out,
    normal,
    possible_foreign_keys,
    qualified,
    without,
)
from include.repository.contents import GLOBALS, INVENTORY, POST_DATA, PRE_DATA, SETTINGS, component_dump
from include.sources.postgres.inventory import (
    Inventory,
    TableContent,
    compare,
    count_large_objects,
    shared_table_contents,
    table_contents,
    take_inventory,
)
from include.sources.postgres.login import DatabaseLogin, DatabaseUnreachable
from include.sources.postgres.relations import CATCH_ALL, Relations, list_relations
from include.sources.postgres.tools import PostgresTools, find_tools

if TYPE_CHECKING:
    from include.policy import Pipeline
    from include.recovery.selection import Session
    from include.repository.manifest import Manifest

log = logging.getLogger(__name__)

APPLICATION = "synapse-backups"

_SIDE_BY_SIDE = "--jobs=2"
_DIFFERENCES_TOLD = 5
_GRANTORS_MINDED = 16_00_00
_NAMED_DATABASE = re.compile(rf"\bDATABASE {IDENTIFIER}")
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
    "synchronous_commit": "off",  # of hundreds of small steps; the renaming at the end makes all of them durable
    "maintenance_work_mem": "256MB",  # an index is sorted in memory where that is enough
}
_UNDISTURBED_SUPERUSER = {"session_replication_role": "origin"}
_UNDISTURBED_SUPERUSER_SINCE_17 = {"event_triggers": "off", "transaction_timeout": "0"}
_DURABLE = "SET synchronous_commit = on"
_TRIGGERS_TURNED_OFF = 17_00_00
_MAPPING_OPTIONS = """
    SELECT option_name FROM pg_user_mappings, pg_options_to_table(umoptions) WHERE srvname = %s AND usename = %s
"""
_OF_THE_DATABASE = re.compile(
    r"^\d+; \d+ \d+ (?:DATABASE|DATABASE PROPERTIES|(?:ACL|COMMENT|SECURITY LABEL) \S+ DATABASE) "
)
_IN_TABLESPACE = re.compile(rf" TABLESPACE = {IDENTIFIER};$")
_UNOWNED = ("--no-owner", "--no-privileges", "--no-security-labels", "--no-tablespaces")


class DatabaseExists(BackupError):
    """A database of the target's name is there already."""


class RestoreDiffers(BackupError):
    """What was restored is not what was backed up."""


class DatabaseSource(Protocol):
    """The artifacts of one database, by their names in a full backup: of a backup, or made of a recovered cluster."""

    @property
    def manifest(self) -> Manifest:
        """The backup; of its database at least the versions."""

    @property
    def policy(self) -> Pipeline:
        """How bytes move."""

    def has(self, name: str) -> bool:
        """Whether there is an artifact of that name."""

    def read(self, name: str) -> Iterator[bytes]:
        """The raw bytes of an artifact."""

    def database_components(self) -> list[str]:
        """The components of which there are tables."""


@dataclass(frozen=True)
class RestoredDatabase:
    """A database that was restored and proved.

    Its name, what it holds, readable names of what could not come along, and the name under which the one that had the
    name before is kept.
    """

    name: str
    tables: int
    rows: int
    left_out: tuple[str, ...] = ()
    replaced: str | None = None


def restore_database(
    backup: DatabaseSource, *, server: DatabaseLogin, name: str, scratch: Path, keep_as: str | None = None
) -> RestoredDatabase:
    """Bring the whole database back as `name` on `server` (a superuser's login), roles included.

    Everything is restored under a scratch name, compared table by table with the inventory, and renamed at the end. A
    restore that fails removes the scratch one. A database that has the name already is left alone, unless `keep_as`
    says what to call it: then its sessions are ended at the very end, and both are renamed at once. Raises
    `DatabaseExists`, `RestoreDiffers`, or whatever stopped it.
    """
    taken = require_place(server, name, keep_as=keep_as)
    restore = _Restore(backup, server, name, scratch)
    return restore.run(keep_as if taken else None)


def require_place(server: DatabaseLogin, name: str, *, keep_as: str | None) -> bool:
    """Whether a database has the name already; raises `DatabaseExists` unless it may be kept as `keep_as`."""
    taken = _exists(server, name)
    if taken:
        _may_be_replaced(server, name, keep_as)
    return taken


def restore_part(
    backup: DatabaseSource,
    *,
    server: DatabaseLogin,
    name: str,
    scratch: Path,
    components: Sequence[str] = (),
    tables: Sequence[str] = (),
) -> RestoredDatabase:
    """Bring some components or tables back as a new database `name`: to look at, compare with, and copy from.

    `tables` are names or shell globs over `schema.table`, as in the policy: a parent's name means its partitions. They
    come with their types, functions, indexes, constraints, triggers and sequences, belong to the login, and are
    compared with the inventory; `left_out` of the answer says what could not come along, such as a foreign key to a
    table that was not asked for. Roles are not touched. Raises `NothingMatches`, `DatabaseExists`, `RestoreDiffers`.
    """
    if _exists(server, name):
        raise DatabaseExists(
            f"The database {name} exists already on {server.host}:{server.port}.",
            mend="Name another: a part of a database takes the place of none. Its rows can be copied from there.",
        )
    restore = _Restore(backup, server, name, scratch)
    return restore.part(components, tables)


def restore_sample(backup: DatabaseSource, component: str, *, server: DatabaseLogin, scratch: Path) -> RestoredDatabase:
    """Restore one component into a scratch database, compare it with the inventory, and drop it again (R4.5).

    Nothing else is needed of the server than the right to create a database: owners and privileges stay out. Raises
    `RestoreDiffers`.
    """
    restore = _Restore(backup, server, component, scratch)
    return restore.sample(component)


def tables_in(login: DatabaseLogin) -> tuple[str, ...]:
    """What a part of a database consists of: each was compared when it came."""
    with login.connect(application_name=APPLICATION, autocommit=True) as session:
        return tuple(str(table) for table in list_relations(session).tables)


class _Restore:
    """One restore, into one scratch database."""

    def __init__(self, backup: DatabaseSource, server: DatabaseLogin, name: str, scratch: Path) -> None:
        self._backup, self._server, self._name, self._scratch = backup, server, name, scratch
        self._scratch_name = f"restore_{secrets.token_hex(4)}_{name}".encode()[:63].decode(errors="ignore")
        self._login = replace(server, dbname=self._scratch_name, options=_undisturbed(server))
        self._program = PgRestore(*_tools_for(backup, server), self._login, APPLICATION)
        document = json.loads(b"".join(backup.read(INVENTORY)))
        self._inventory = Inventory.from_json(document)
        self._components: dict[str, list[str]] = document["components"]
        self._comment = f"COMMENT ON DATABASE {_quoted(self._scratch_name)} IS NULL"

    def run(self, keep_as: str | None) -> RestoredDatabase:
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as directory:
            pre_data = self._spooled(PRE_DATA, Path(directory))
            post_data = self._spooled(POST_DATA, Path(directory))
            try:
                self._restore_roles()
                self._create_as_it_was(pre_data)
                self._program.restore(pre_data)
                self._restore_user_mappings()
                self._restore_rows()
                turns = self._in_turn(post_data, self._program.listed(post_data, "--verbose"))
                self._program.restore_entries(post_data, turns.side_by_side, _SIDE_BY_SIDE)
                self._program.restore_entries(post_data, turns.one_by_one)
                self._program.restore_entries(post_data, turns.refreshed, _SIDE_BY_SIDE)
                restored = self._take_inventory()
                self._must_equal(compare(self._inventory, restored))
                self._program.restore_entries(post_data, turns.awake)
                self._put_in_place(keep_as)
            except BaseException:
                self._drop()
                raise
        return RestoredDatabase(self._name, len(restored.tables), restored.rows, replaced=keep_as)

    def part(self, components: Sequence[str], tables: Sequence[str]) -> RestoredDatabase:
        """Rows come before indexes, and both while the whole schema is there: what is left out is dropped afterwards.

        So PostgreSQL says what hangs on it, and what is asked for is restored as it is in a whole restore.
        """
        components = known_components(components, self._backup.database_components(), what="tables")
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as directory:
            pre_data = self._spooled(PRE_DATA, Path(directory))
            post_data = self._spooled(POST_DATA, Path(directory))
            try:
                self._create_unowned(pre_data)
                self._program.restore_entries(
                    pre_data, without(listed := self._program.listed(pre_data), "USER MAPPING"), *_UNOWNED
                )
                left_out = [*ALWAYS_LEFT_OUT, *self._named_when_left_out(pre_data, listed)]
                with self._login.connect(application_name=APPLICATION, autocommit=True) as session:
                    part = self._choose(session, components, tables, Path(directory))
                    self._restore_rows_of(part, components)
                    self._set_sequences(session, part)
                    listed = self._program.listed(post_data, "--verbose")
                    turns = self._in_turn(post_data, listed)
                    self._program.restore_entries(
                        post_data, entries_at_once(turns.side_by_side), _SIDE_BY_SIDE, *_UNOWNED
                    )
                    self._program.restore_entries(post_data, entries_at_once(turns.one_by_one), *_UNOWNED)
                    left_out += [*self._large_objects_left_out(components), *part.without_rows()]
                    left_out += drop_surplus(session, part)
                    left_out += self._restore_foreign_keys(post_data, listed, part)
                    left_out += self._named_when_left_out(post_data, listed, part)
                    self._refresh(session, post_data, listed)
                    restored = Inventory(table_contents(session, part.tables), {})
                    differences = compare(self._inventory, restored, restored.tables.keys())
                self._must_equal(differences)
                if CATCH_ALL in components:
                    self._must_have_large_objects()
                self._put_in_place(None)
            except BaseException:
                self._drop()
                raise
        return RestoredDatabase(self._name, len(restored.tables), restored.rows, tuple(left_out))

    def _choose(self, session: Session, components: Sequence[str], tables: Sequence[str], directory: Path) -> Part:
        relations = list_relations(session)
        named = {table for component in components for table in self._components[component]}
        for dump in map(component_dump, components):
            if self._backup.has(dump):
                named |= loose_sequences(self._program.listed_stream(self._backup.read(dump), directory), relations)
        return choose_part(session, relations, tables, named=named)

    def _restore_rows_of(self, part: Part, components: Sequence[str]) -> None:
        """A component that was asked for comes whole; of another one the tables that were, a schema at a time."""
        whole = [dump for dump in map(component_dump, components) if self._backup.has(dump)]
        wanted: dict[tuple[str, str], list[str]] = {}
        for component, held in self._components.items():
            for table in part.tables:
                if component not in components and str(table) in held:
                    wanted.setdefault((component_dump(component), table.schema), []).append(f"--table={table.name}")
        with ThreadPoolExecutor(self._backup.policy.streams_at_once, thread_name_prefix="restore") as pool:
            results = [pool.submit(self._pipe, dump, *_UNOWNED) for dump in whole]
            results += [
                pool.submit(self._pipe, dump, *_UNOWNED, f"--schema={schema}", *named)
                for (dump, schema), named in wanted.items()
            ]
            for result in results:
                result.result()

    def _set_sequences(self, session: Session, part: Part) -> None:
        """As the consistency point recorded them: a sequence may be in another component's dump than its table."""
        for sequence in part.sequences:
            if state := self._inventory.sequences.get(str(sequence)):
                session.execute(
                    "SELECT setval(%s::regclass, %s, %s)", (qualified(sequence), state.last_value, state.is_called)
                )

    def _large_objects_left_out(self, components: Sequence[str]) -> list[str]:
        held = self._inventory.large_objects
        return [f"large objects: {held.count}"] if held and held.count and CATCH_ALL not in components else []

    def _restore_foreign_keys(self, post_data: Path, listed: Sequence[str], part: Part) -> list[str]:
        entries = entries_of(listed, "FK CONSTRAINT")
        keys = [one for one in self._program.statements(post_data, entries) if FOREIGN_KEY.match(one)]
        possible, left_out = possible_foreign_keys(keys, part)
        self._program.restore_entries(
            post_data, [entry for entry, can in zip(entries, possible, strict=True) if can], *_UNOWNED
        )
        return left_out

    def _named_when_left_out(self, dump: Path, listed: Sequence[str], part: Part | None = None) -> list[str]:
        entries = entries_of(listed, *NAMED_WHEN_LEFT_OUT)
        return list(named_when_left_out(self._program.statements(dump, entries), part.kept if part else ()))

    def _refresh(self, session: Session, post_data: Path, listed: Sequence[str]) -> None:
        """Fill the materialized views that are still there, and had rows."""
        there = {qualified(view) for view in list_relations(session).of_kind("materialized view")}
        entries = entries_of(listed, "MATERIALIZED VIEW DATA")
        names = [found["name"] for one in self._program.statements(post_data, entries) if (found := REFRESH.match(one))]
        wanted = [entry for entry, name in zip(entries, names, strict=True) if normal(name) in there]
        self._program.restore_entries(post_data, wanted, *_UNOWNED)

    def sample(self, component: str) -> RestoredDatabase:
        expected = frozenset(self._components[component])
        try:
            create = f"CREATE DATABASE {_quoted(self._scratch_name)} TEMPLATE template0{self._encoding()}"
            self._execute([create, mark(self._scratch_name)])
            self._pipe(PRE_DATA, *_UNOWNED)
            self._pipe(component_dump(component), *_UNOWNED)
            with self._login.connect(application_name=APPLICATION, autocommit=False) as session:
                tables = [table for table in list_relations(session).tables if str(table) in self._inventory.tables]
                restored = Inventory(table_contents(session, tables), {})
            self._must_equal(compare(self._inventory, restored, expected))
            if component == CATCH_ALL:
                self._must_have_large_objects()
        finally:
            self._drop()
        return RestoredDatabase(component, len(expected), sum(restored.tables[name].rows for name in expected))

    def _take_inventory(self) -> Inventory:
        """Count and hash everything, the largest tables first, in several sessions: nobody else is in this database."""
        with self._login.connect(application_name=APPLICATION, autocommit=False) as session:
            relations = list_relations(session)
            others = take_inventory(session, Relations(relations.sequences))
        expected = self._inventory.tables
        tables = sorted(relations.tables, key=lambda table: -_rows_of(expected.get(str(table))))
        connect = partial(self._login.connect, application_name=APPLICATION, autocommit=False)
        sessions = self._backup.policy.streams_at_once
        return replace(others, tables=shared_table_contents([connect] * sessions, tables))

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
        wanted = [statement for statement in statements(script) if subject(statement) not in there]
        if minds_grantors and self._backup.manifest.database.server_version < _GRANTORS_MINDED:
            # Before, anybody could be written down as a grantor; as pg_dumpall 16 does, whoever restores is.
            wanted = [without_grantor(statement) for statement in wanted]
        self._execute(wanted)

    def _create_as_it_was(self, pre_data: Path) -> None:
        """Create the scratch database with the locale, settings, owner and privileges that the dump recorded."""
        create, *others = self._creation(pre_data)
        # Until it is put in place its comment is the mark of a scratch database.
        self._comment = next((statement for statement in others if statement.startswith("COMMENT ")), self._comment)
        others = [statement for statement in others if statement != self._comment]
        self._execute([create, mark(self._scratch_name), *others])

    def _create_unowned(self, pre_data: Path) -> None:
        """Create the scratch database with the encoding and locale that the dump recorded, and nothing else."""
        create = next(one for one in self._creation(pre_data) if one.startswith("CREATE DATABASE "))
        self._execute([_IN_TABLESPACE.sub(";", create), mark(self._scratch_name)])

    def _creation(self, pre_data: Path) -> list[str]:
        """The statements that make the scratch database what the dump recorded.

        pg_restore knows how to write that for every version, and only under the original name: its script is taken, and
        the name in it replaced.
        """
        listed = [line for line in self._program.listed(pre_data, "--create") if _OF_THE_DATABASE.match(line)]
        script = self._program.script(pre_data, listed, "--create")
        ours = f"DATABASE {_quoted(self._scratch_name)}"
        # The name stands before any literal in each of these statements: the first match is it. The others are settings
        # of pg_restore's own session, which an older server may not know.
        return [
            _NAMED_DATABASE.sub(lambda _: ours, statement, count=1)
            for statement in statements(script)
            if _NAMED_DATABASE.search(statement)
        ]

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
        self._program.stream(self._backup.read(artifact), *options)

    def _put_in_place(self, keep_as: str | None) -> None:
        """Give the scratch database its name and its comment; what has the name until now gets `keep_as`.

        It waits for the log, and so for all that was restored: that has not.
        """
        ours = f"DATABASE {_quoted(self._name)}"
        comment = _NAMED_DATABASE.sub(lambda _: ours, self._comment, count=1)
        if keep_as is None:
            rename = f"ALTER DATABASE {_quoted(self._scratch_name)} RENAME TO {_quoted(self._name)}"
            self._execute([_DURABLE, f"{rename}; {comment}"])  # one string, so one transaction
        else:
            with self._server.connect(application_name=APPLICATION, autocommit=True) as session:
                session.execute(_DURABLE)
                swap_databases(session, self._scratch_name, name=self._name, keep_as=keep_as, comment=comment)

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
        """Compare their number and bytes. Their digest has their owners in it, whom a part leaves out."""
        expected = self._inventory.large_objects
        if expected is not None:
            with self._login.connect(application_name=APPLICATION, autocommit=True) as session:
                found = count_large_objects(session)
            if found != (expected.count, expected.bytes):
                self._must_equal(
                    [f"large objects: {found[0]} of {found[1]} bytes, not {expected.count} of {expected.bytes}"]
                )

    def _in_turn(self, post_data: Path, listed: Sequence[str]) -> Turns:
        indexes = indexes_of(listed)
        return in_turn(listed, apart=upgrading(indexes, self._program.statements(post_data, indexes)))

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

    def _drop(self) -> None:
        """Remove the scratch database. When that fails too, its name says what it is, and the reaper finds it."""
        try:
            with self._server.connect(application_name=APPLICATION, autocommit=True) as session:
                session.execute("SET client_encoding = 'UTF8'")
                drop_database(session, self._scratch_name)
        except (BackupError, psycopg.Error) as failure:
            told = failure.diag.message_primary if isinstance(failure, psycopg.Error) else failure
            log.warning("The scratch database %s could not be dropped: %s", self._scratch_name, told)


def _rows_of(content: TableContent | None) -> int:
    return content.rows if content else 0


def _may_be_replaced(server: DatabaseLogin, name: str, keep_as: str | None) -> None:
    where = f"{server.host}:{server.port}"
    if keep_as is None:
        raise DatabaseExists(
            f"The database {name} exists already on {where}.",
            mend="Restore under another name; or say --overwrite: the one that is there is then kept, renamed.",
        )
    if name == server.dbname:
        raise DatabaseExists(
            f"The database {name} on {where} is the one that the restore's own session is in.",
            mend="Name another database to connect to, such as PGDATABASE=postgres.",
        )
    if _exists(server, keep_as):
        raise DatabaseExists(
            f"The database {name} was to be kept as {keep_as} on {where}, and that exists, too.",
            mend="Start again, or rename that one.",
        )
    log.warning("The database %s is replaced at the end, and kept as %s; the sessions in it are ended.", name, keep_as)


def _exists(server: DatabaseLogin, name: str) -> bool:
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        return session.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None


def _tools_for(backup: DatabaseSource, server: DatabaseLogin) -> tuple[PostgresTools, int]:
    """pg_restore is never older than the pg_dump that wrote, nor than the server it restores into; and that one's."""
    with server.connect(application_name=APPLICATION, autocommit=True) as session:
        major = session.info.server_version // 10_000
    return find_tools(max(major, backup.manifest.database.tools)), major


def undisturbed_login(login: DatabaseLogin) -> DatabaseLogin:
    """`login`, for sessions that are disturbed by nothing that its database has set for its users.

    What may be asked for is found out in another database: a trigger on login would write down who came to look.
    """
    try:
        options = _undisturbed(login.with_database("postgres"))
    except DatabaseUnreachable:
        options = _undisturbed(login)
    return replace(login, options=options)


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
