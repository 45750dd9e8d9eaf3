"""One of everything that PostgreSQL knows, backed up while it changes, and back again with nothing lost (R2.1, R5.1).

The animals are in `tests/zoo`, a family a file; a file whose first line is `-- where: <condition>` lives only on
servers that answer it with yes. Equal is what `pg_dump` says the same of, to the letter, and the inventory as well.
Security labels are not in the zoo: no package brings a provider. Subscriptions are not, since no backup has them.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from include.backup import consistency
from include.backup.full import make_full_backup
from include.pipeline.progress import Progress
from include.policy import Policy, load_policy
from include.recovery.database import restore_database
from include.recovery.opened import OpenedBackup
from include.recovery.validation.consistency import check_data_consistency
from include.recovery.validation.recovered import Expected, Recovered
from include.repository.contents import INVENTORY
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import GRANTS, Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import list_relations
from include.sources.postgres.tools import find_tools

ZOO = Path(__file__).parents[1] / "zoo"
NAME = "The \"Zoo\"; \\ of 15's and 18's"
SEED = int(os.environ.get("ZOO_SEED") or random.SystemRandom().randrange(1 << 31))
POLICY_FILE = Path("include/policy/backup.yaml")
# What a session of ours asks for itself, whatever the database has set for everybody.
OURS = (
    "-c client_encoding=UTF8 -c statement_timeout=0 -c search_path=public -c session_replication_role=origin"
    " -c default_transaction_isolation=read\\ committed -c default_transaction_deferrable=off -c role=none"
    " -c standard_conforming_strings=on -c quote_all_identifiers=off"
)
# The one fault that the zoo itself has: rows were given their numbers by hand.
BEHIND = ['last number given out of shapes."the ""B""": 1, not at least 5']
ODD = ("names", "a", "select")  # schemas of names.sql that look plain
# Set for a database, each of these bends what is read, written or understood in it.
DATABASE_SETTINGS = {
    "search_path": 'names, "a b", public',
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "DateStyle": "German, DMY",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-10",
    "IntervalStyle": "sql_standard",
    "quote_all_identifiers": "on",
    "role": "zoo_keeper",
    "row_security": "off",
    "session_replication_role": "replica",
    "standard_conforming_strings": "off",
    "statement_timeout": "20ms",
    "TimeZone": "Asia/Kathmandu",
    "transform_null_equals": "on",
    "xmloption": "document",
    "zoo.keeper": 'it\'s "hard"; \\',
}


# The zoo


@dataclass(frozen=True)
class Family:
    """One file of the zoo."""

    name: str
    text: str
    where: str

    @classmethod
    def read(cls, path: Path) -> Family:
        text = path.read_text()
        where = re.match(r"-- where: (.*)\n", text)
        return cls(path.stem, text, where[1] if where else "true")

    def offered(self, session: psycopg.Connection) -> bool:
        row = session.execute(f"SELECT {self.where}".encode()).fetchone()
        assert row is not None
        return row[0]

    def move_in(self, session: psycopg.Connection) -> None:
        with session.transaction():
            session.execute("SELECT setseed(%s)", (SEED / (1 << 31),))
            session.execute(self.text.encode())


ROLES = [Family.read(ZOO / f"{name}.sql") for name in ("roles", "roles_16")]
FAMILIES = [Family.read(path) for path in sorted(ZOO.glob("*.sql")) if not path.name.startswith("roles")]


def ask(login: DatabaseLogin, query: str, *values: object) -> list[tuple[Any, ...]]:
    with login.connect(application_name="test", autocommit=True) as session:
        cursor = session.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []


def open_zoo(
    server: PostgresServer, name: str, extensions: Path, *, others: Sequence[PostgresServer] = ()
) -> list[str]:
    """Make the database `name` with every family that the server and all `others` offer; returns who stayed away.

    That they offer it is what their catalogs say; a family that a server does not offer, the server itself refuses.
    """
    superuser = server.superuser
    identifier = sql.Identifier(name)
    with superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        for family in ROLES:
            if family.offered(session):
                family.move_in(session)
        if server.major >= 18:
            path = sql.Literal(f"{extensions}:$system")
            session.execute(sql.SQL("ALTER DATABASE {} SET extension_control_path = {}").format(identifier, path))
    away = []
    with superuser.with_database(name).connect(application_name="test", autocommit=True) as session:
        for family in FAMILIES:
            if not family.offered(session):
                with pytest.raises(psycopg.Error):
                    family.move_in(session)
                away.append(family.name)
            elif all(offers(other, family) for other in others):
                family.move_in(session)
            else:
                away.append(family.name)
        session.execute(GRANTS.read_bytes())
        for setting, value in DATABASE_SETTINGS.items():
            # A list is written as one; a value that is not, as a literal.
            written = sql.SQL(value) if setting == "search_path" else sql.Literal(value)
            session.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(identifier, sql.SQL(setting), written))
        session.execute(sql.SQL("ALTER ROLE zoo_keeper IN DATABASE {} SET work_mem = '9MB'").format(identifier))
        session.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 50").format(identifier))
        session.execute(
            sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO zoo_visitor WITH GRANT OPTION").format(identifier)
        )
        session.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(identifier))
        session.execute(sql.SQL("COMMENT ON DATABASE {} IS 'it''s a \"zoo\"; --'").format(identifier))
        session.execute(sql.SQL("ALTER DATABASE {} OWNER TO zoo_keeper").format(identifier))
    return away


def offers(server: PostgresServer, family: Family) -> bool:
    with server.superuser.connect(application_name="test") as session:
        return family.offered(session)


# What pg_dump says

BUSY = re.compile(
    r"^SELECT pg_catalog\.setval\('(?:changing\.(?:busy|parted_id_seq)|acting\.changes_n_seq)', .*\n", re.MULTILINE
)


def text_of(login: DatabaseLogin, major: int, *options: str) -> str:
    """The whole database as pg_dump's plain text, without what must differ: names of databases, and one-time tokens."""
    argv = [find_tools(major).pg_dump, "--create", "--no-sync", "--no-password", *options]
    login = replace(login, options=OURS + since_17(login))
    done = subprocess.run(argv, env={**login.environment(), "LC_ALL": "C"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    for name in (login.dbname.replace('"', '""'), login.dbname):
        text = text.replace(name, "DATABASE")
    text = re.sub(r'(?<=DATABASE )"?DATABASE"?', "DATABASE", text)
    text = re.sub(r"(?<= FROM stdin;\n)(.*?)(?=^\\\.$)", _sorted, text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(?:\\(?:un)?restrict|\\connect|\\encoding|-- Dumped).*\n", "", text, flags=re.MULTILINE)


def since_17(login: DatabaseLogin) -> str:
    """Nothing of ours is to wake the zoo's triggers on login."""
    with login.with_database("postgres").connect(application_name="test") as session:
        return " -c event_triggers=off" if session.info.server_version >= 17_00_00 else ""


def _sorted(rows: re.Match[str]) -> str:
    """A table has no order, and COPY puts a long row where there is room."""
    return "".join(sorted(f"{row}\n" for row in rows[1].split("\n")[:-1]))


VIEW = re.compile(r"^CREATE (?:OR REPLACE |MATERIALIZED )*VIEW .*?;$", re.MULTILINE | re.DOTALL)
QUALIFIED = re.compile(r'(?:\w+|"(?:[^"]|"")+")\.(?=[\w"])')

VERSION = re.compile(r'^ALTER (?:FOREIGN )?TABLE (?:"(?:[^"]|"")*"|[^";])*? SET \(pg_attver=\d+\);\n', re.MULTILINE)


def in_words_of_both(text: str) -> str:
    """Without what 15 and 18 say in other words: they qualify columns in views or not, name every NOT NULL or none,
    have an eighth privilege on tables, and a function of their own with other columns. 15.20 keeps a column's version
    among its options, and an 18 that is older than that does not know to pass over it."""
    text = re.sub(r"\bpg_attver=\d+, ", "", VERSION.sub("", text))
    text = VIEW.sub(lambda view: QUALIFIED.sub("", view[0]), text)
    text = re.sub(r" CONSTRAINT \S+ NOT NULL", " NOT NULL", text)
    text = text.replace(
        "REVOKE SELECT,INSERT,REFERENCES,DELETE,TRIGGER,TRUNCATE,UPDATE ON TABLE", "REVOKE ALL ON TABLE"
    )
    return re.sub(r"(pg_hba_file_rules|pg_ident_file_mappings)\([^)]*\)", r"\1()", text)


def assert_alike(before: str, after: str) -> None:
    """Both texts are equal but for the numbers that go on while the dumps run (the inventory minds those)."""
    before, after = BUSY.sub("", before), BUSY.sub("", after)
    if before != after:
        lines = difflib.unified_diff(before.split("\n"), after.split("\n"), "backed up", "restored", lineterm="", n=1)
        pytest.fail("\n".join(line[:250] for _, line in zip(range(200), lines, strict=False)))


# What goes on meanwhile


class Changes:
    """Writers, and a change of definitions, from before the consistency point until after the last dump."""

    def __init__(self, login: DatabaseLogin) -> None:
        self._login = replace(login, options=OURS)
        self._end = threading.Event()
        self.written = self.refused = 0
        self.failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._write, self._define)]

    def __enter__(self) -> Changes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if self.failure:
            raise self.failure

    def _run(self, work: Any) -> None:
        dice = random.Random(SEED)
        try:
            with self._login.connect(application_name="zoo", autocommit=True) as session:
                while not self._end.is_set():
                    work(session, dice)
        except BaseException as failure:
            self.failure = failure

    def _write(self, session: psycopg.Connection, dice: random.Random) -> None:
        giver, taker = dice.sample(range(1, 201), 2)
        with session.transaction():
            amount = dice.randrange(10)
            session.execute("UPDATE changing.accounts SET balance = balance - %s WHERE id = %s", (amount, giver))
            session.execute("INSERT INTO changing.parted (k) SELECT n % 3 FROM generate_series(1, 20) AS n")
            session.execute("SELECT nextval('changing.busy'), lo_unlink(lo_from_bytea(0, 'gone'))")
            session.execute("SELECT lo_from_bytea(0, 'stays')")
            session.execute("UPDATE changing.accounts SET balance = balance + %s WHERE id = %s", (amount, taker))
        session.execute("REFRESH MATERIALIZED VIEW changing.totals")
        self.written += 1
        self._end.wait(0.02)

    def _define(self, session: psycopg.Connection, dice: random.Random) -> None:
        name = sql.Identifier("changing", f"new_{dice.randrange(1000)}")
        session.execute(sql.SQL("CREATE TABLE {} (x int)").format(name))
        session.execute(sql.SQL("DROP TABLE {}").format(name))
        try:
            with session.transaction():
                session.execute("SET LOCAL lock_timeout = '50ms'")
                session.execute(f"ALTER TABLE changing.accounts ALTER note SET DEFAULT '{dice.random()}'".encode())
        except psycopg.errors.LockNotAvailable:
            self.refused += 1
        self._end.wait(0.5)


# Backing it up


@dataclass(frozen=True)
class Zoo:
    """A zoo on a server, and the way to its backups."""

    installation: Installation
    database: DatabaseLogin
    directory: Path

    def back_up(self, backup: str, policy: Policy, monkeypatch: pytest.MonkeyPatch, *, reader: int) -> BackedUp:
        """Back it up while it changes; what `pg_dump` of `reader` says of the consistency point is asked within it."""
        texts: list[str] = []
        tables: list[int] = []
        hold = consistency.hold_consistency_point

        @contextmanager
        def watched(*args: Any, **options: Any) -> Iterator[Any]:
            with hold(*args, **options) as point:
                tables.append(len(point.relations.tables))
                texts.append(text_of(self.database, reader, f"--snapshot={point.snapshot}"))
                yield point

        monkeypatch.setattr(consistency, "hold_consistency_point", watched)
        application = replace(
            self.installation.application(),
            barrier=self.installation.barrier.with_database(self.database.dbname),
            dump=self.installation.dump.with_database(self.database.dbname),
        )
        with Changes(self.database) as changes:
            manifest = make_full_backup(
                BackupId.parse(backup),
                slot=None,
                application=application,
                catalog=self.installation.catalog(),
                policy=policy,
                scratch=self.directory,
            )
        assert manifest.database.tables == tables[-1]
        assert changes.written > 0
        assert changes.refused > 0
        return BackedUp(self, policy, manifest, texts[-1])


@dataclass(frozen=True)
class BackedUp:
    """A backup, and what pg_dump said of its moment."""

    zoo: Zoo
    policy: Policy
    manifest: Manifest
    text: str

    def restore(self, server: PostgresServer, name: str) -> DatabaseLogin:
        with Progress("test") as progress:
            opened = OpenedBackup(
                self.zoo.installation.catalog(), self.manifest, policy=self.policy.pipeline, progress=progress
            )
            restored = restore_database(opened, server=server.superuser, name=name, scratch=self.zoo.directory)
        assert (restored.tables, restored.rows) == (self.manifest.database.tables, self.manifest.database.rows)
        return server.superuser.with_database(name)

    def not_valid(self, back: DatabaseLogin) -> list[str]:
        """What the validation of the data finds that came back."""
        with Progress("test") as progress:
            catalog, policy = self.zoo.installation.catalog(), self.policy.pipeline
            opened = OpenedBackup(catalog, self.manifest, policy=policy, progress=progress)
            inventory = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
        with self.zoo.database.connect(application_name="test") as session:
            constraints = list_constraints(session, list_relations(session).all)
        expected = Expected(self.manifest.consistency_point.time, inventory, constraints=constraints)
        return list(map(str, check_data_consistency(Recovered(expected, back), self.policy).failed))


def policy_with(directory: Path, components: Mapping[str, list[str]]) -> Policy:
    """The policy of the project with other components of the database, written to a file and read from it."""
    document = yaml.safe_load(POLICY_FILE.read_text())
    others = {name: fields for name, fields in document["components"].items() if fields["source"] != "database"}
    document["components"] = {
        **{name: {"source": "database", "retention_class": "personal", "tables": t} for name, t in components.items()},
        **others,
    }
    document["sources"]["objects"]["references"] = []
    document["barrier"]["backoff"] = "100 ms"
    document["barrier"]["tries"] = 20
    file = directory / "policy.yaml"
    file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))  # requests have an order
    return load_policy(file)


def spread(zoo: Zoo) -> dict[str, list[str]]:
    """Every animal in some component; those in schemas with odd names each by a pattern of its own."""
    with zoo.database.connect(application_name="test") as session:
        relations = list_relations(session)
    # Partitions and heirs go with their parents, owned sequences with their tables.
    heads = [one for one in (*relations.lockable, *relations.sequences) if one.owner is None and not one.ancestors]
    odd = [one for one in heads if one.schema in ODD or not re.fullmatch(r"[a-z_0-9]+", one.schema)]
    plain = sorted({one.schema for one in set(heads) - set(odd)} - {"changing"})
    return {
        "one_half": [f"{schema}.*" for schema in plain[::2]],
        "other_half": [f"{schema}.*" for schema in plain[1::2]],
        "odd_names": sorted({f"{written(one.schema)}.{written(one.name)}" for one in odd}),
        "changing": ["changing.parted", "changing.accounts", "changing.busy"],
    }


def written(name: str) -> str:
    """A name in a pattern of the policy: ? for white space and dots, brackets around what a glob would read."""
    return re.sub(r"[\s.]", "?", re.sub(r"[*?\[]", r"[\g<0>]", name))


@pytest.fixture(scope="module")
def extensions(sandbox_directory: Path) -> Path:
    """A directory that has the zoo's own extension, and that a server may read."""
    share = sandbox_directory / "zoo-share"
    shutil.copytree(ZOO / "extension", share / "extension")
    return share


@pytest.fixture(scope="module")
def installed(
    request: pytest.FixtureRequest, sandbox_directory: Path, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Callable[[int], Installation]]:
    """A small Synapse with backups on the server of a major version, made when it is first asked for."""
    made: dict[int, Installation] = {}

    def installed(major: int) -> Installation:
        if major not in made:
            directory = sandbox_directory / f"zoo-{major}"
            directory.mkdir()
            made[major] = Installation.make(
                directory,
                postgres=request.getfixturevalue(f"postgres{major}"),
                primary=s3_primary,
                replica=s3_replica,
                suffix=f"-zoo-{major}",
                scale=0.01,
            )
        return made[major]

    yield installed
    for installation in made.values():
        installation.synapse.destroy()


@pytest.fixture
def zoo_on(
    installed: Callable[[int], Installation], extensions: Path, sandbox_directory: Path
) -> Iterator[Callable[..., Zoo]]:
    """Opens a zoo on the server of a major version, of the families that the servers in `others` offer too."""
    opened: list[PostgresServer] = []

    def zoo_on(major: int, *others: PostgresServer) -> Zoo:
        installation = installed(major)
        opened.append(installation.postgres)
        away = open_zoo(installation.postgres, NAME, extensions, others=others)
        print(f"\nZOO_SEED={SEED}; not on PostgreSQL {major}: {', '.join(away)}")
        return Zoo(
            installation, replace(installation.postgres.superuser.with_database(NAME), options=OURS), sandbox_directory
        )

    yield zoo_on
    for server in opened:
        drop(server, NAME)


def drop(server: PostgresServer, name: str) -> None:
    with server.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def fresh(directory: Path, major: int) -> Iterator[PostgresServer]:
    """A server that has none of the zoo's roles."""
    with PostgresServer(directory / f"zoo-fresh-{secrets.token_hex(4)}", major=major, durable=False) as server:
        yield server


@pytest.mark.requirement("R2.1", "R5.1", "R5.2")
@pytest.mark.parametrize("major", [15, pytest.param(18, marks=pytest.mark.soak)])
def test_every_animal_comes_back_from_the_catch_all(
    zoo_on: Callable[..., Zoo], sandbox_directory: Path, monkeypatch: pytest.MonkeyPatch, major: int
) -> None:
    zoo = zoo_on(major)
    policy = policy_with(sandbox_directory, {"nothing": ["nothing.here"]})
    backed_up = zoo.back_up("full-20261122T000000Z", policy, monkeypatch, reader=major)
    back = backed_up.restore(zoo.installation.postgres, 'a "zoo" beside the other')
    try:
        assert_alike(backed_up.text, text_of(back, major))
        assert backed_up.not_valid(back) == BEHIND
    finally:
        drop(zoo.installation.postgres, back.dbname)


@pytest.mark.requirement("R2.1", "R5.1", "R5.2")
@pytest.mark.parametrize("major", [18, pytest.param(15, marks=pytest.mark.soak)])
def test_every_animal_comes_back_from_a_component_where_no_role_was(
    zoo_on: Callable[..., Zoo], sandbox_directory: Path, monkeypatch: pytest.MonkeyPatch, major: int
) -> None:
    zoo = zoo_on(major)
    policy = policy_with(sandbox_directory, spread(zoo))
    backed_up = zoo.back_up("full-20261123T000000Z", policy, monkeypatch, reader=major)
    with fresh(sandbox_directory, major) as server:
        back = backed_up.restore(server, "zoo restored elsewhere")
        assert_alike(backed_up.text, text_of(back, major))
        assert backed_up.not_valid(back) == BEHIND
        assert roles(server) == roles(zoo.installation.postgres)
    assert [warning for warning in backed_up.manifest.warnings if "is in no component" in warning] == []


@pytest.mark.requirement("R2.1", "R5.1", "R5.2")
def test_every_animal_moves_from_15_to_18(
    zoo_on: Callable[..., Zoo], sandbox_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh(sandbox_directory, 18) as server:
        zoo = zoo_on(15, server)
        policy = policy_with(sandbox_directory, spread(zoo))
        backed_up = zoo.back_up("full-20261124T000000Z", policy, monkeypatch, reader=18)
        back = backed_up.restore(server, "zoo restored elsewhere")
        assert_alike(in_words_of_both(backed_up.text), in_words_of_both(text_of(back, 18)))


def roles(server: PostgresServer) -> list[str]:
    """What pg_dumpall says of the zoo's roles."""
    argv = [find_tools(server.major).pg_dumpall, "--roles-only"]
    done = subprocess.run(argv, env=server.superuser.environment(), capture_output=True, text=True, check=True)
    # Any three letters may be within a password's digest.
    return [line for line in done.stdout.splitlines() if "zoo" in line.partition(" PASSWORD ")[0].lower()]
