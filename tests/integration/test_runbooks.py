"""The runbooks for people, to the letter: the damage is done, the commands are typed, and all of it is back."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.disaster.plan import load_plan
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sandbox.terminal import PROJECT, in_hand
from tests.backed_up import back_up, back_up_hour
from tests.following import RUNBOOKS, declared, following, read_blocks

SCALE = 0.05
FILES = "synapse-files-dr"
FOR_PEOPLE = sorted({scenario.runbook for scenario in load_plan().scenarios.values()} | {"key_loss"})


@dataclass
class Home:
    """A Synapse with its own servers, which a disaster may take; what its people have in hand."""

    directory: Path
    installation: Installation
    primary: S3Server
    replica: S3Server
    postgres: PostgresServer
    backed_up: Fingerprint
    """What the newest backup is of: the application that a validation starts writes, too."""

    def given(self, **more: str) -> dict[str, str]:
        """What one of its people has in hand, near the primary region."""
        return in_hand(self.installation, self.directory / "home") | more

    @property
    def files(self) -> Bucket:
        """The application's bucket."""
        return self.installation.application().objects

    def back_up(self, backup: str) -> None:
        """Let an hour be over."""
        back_up_hour(self.installation, self.directory, backup)
        self.backed_up = self.installation.synapse.fingerprint()

    def run(self, statement: str) -> None:
        """Do something to the live database."""
        with self.installation.synapse.database.connect(application_name="test", autocommit=True) as session:
            session.execute(statement.encode())

    def cli(self, *arguments: str, **variables: str) -> None:
        """A command that somebody ran on an earlier day."""
        command = [sys.executable, "-m", "include.cli", *arguments]
        subprocess.run(command, cwd=self.directory, env=self.given(**variables), check=True)


@pytest.fixture(scope="module")
def home(sandbox_directory: Path) -> Iterator[Home]:
    """The names are those of the runbooks, so its servers are its own; the tests take them one after another."""
    directory = sandbox_directory / "runbooks"
    directory.mkdir(mode=0o711)
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(directory / "postgres", major=18, durable=False))
        primary = stack.enter_context(S3Server(directory / "s3-primary", region="eu-west-1"))
        replica = stack.enter_context(S3Server(directory / "s3-replica", region="us-east-1"))
        installation = Installation.make(directory, postgres=postgres, primary=primary, replica=replica, scale=SCALE)
        back_up(installation, directory)
        yield Home(directory, installation, primary, replica, postgres, installation.synapse.fingerprint())


def same(before: Fingerprint, after: Fingerprint) -> list[str]:
    """What differs; a sequence may be ahead, for the log notes 32 numbers at a time."""
    ahead = {name: last for name, last in before.sequences.items() if (after.sequences.get(name) or 0) >= (last or 0)}
    return before.difference(replace(after, sequences={**after.sequences, **ahead}))


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("runbook", FOR_PEOPLE)
def test_each_says_who_decides_and_whom_to_tell(runbook: str) -> None:
    text = (RUNBOOKS / f"{runbook}.md").read_text()
    for part in ("**Use it when**", "**Who decides**", "## In hand", "## How to check", "## How to undo", "## Tell"):
        assert part in text, part
    assert "s3cmd" in text
    for block in read_blocks(runbook):
        if block.script.startswith("airflow dags trigger disaster_recovery"):
            declared(block)


@pytest.mark.requirement("R5.1", "R9", "R2.2")
def test_something_was_deleted_by_mistake(home: Home) -> None:
    synapse = home.installation.synapse
    home.installation.settle()
    before, moment = synapse.fingerprint(), datetime.now(UTC)
    deleted, ruined = sorted(home.files.keys("uploads/life/"))[:2]
    home.installation.settle()
    home.run("DROP TABLE public.attachments")
    home.files.delete(deleted)
    home.files.put(ruined, b"by mistake")
    (synapse.configuration / "environment" / "production.env").write_text("broken")
    home.back_up("incremental-20261122T020000Z")
    given = home.given(
        **{"MOMENT": moment.isoformat(), "TABLE": "public.attachments", "PREFIX": "uploads/life/", "KEY": deleted},
    )
    with following("accidental_deletion", given, home.directory) as person:
        person.does("In hand", "With Airflow", *range(1, 8))

    assert same(before, synapse.fingerprint()) == []
    assert list(home.files.keys("restored/")) == []
    home.back_up("incremental-20261122T030000Z")


@pytest.mark.requirement("R5.3", "R9", "R2.2")
def test_a_stranger_encrypted_it(home: Home) -> None:
    synapse, catalog = home.installation.synapse, home.installation.catalog()
    home.installation.settle()
    before, moment = synapse.fingerprint(), datetime.now(UTC)
    home.installation.settle()
    home.run("UPDATE messages SET body = md5(random()::text)")
    home.run("DELETE FROM attachments WHERE id % 2 = 0")
    keys = sorted(home.files.keys("uploads/"))
    for key in keys[:5]:
        home.files.put(key, secrets.token_bytes(1000))
    home.files.delete(keys[5])
    home.files.put("uploads/README-RANSOM.txt", b"pay")
    home.back_up("incremental-20261122T040000Z")
    [piece] = [key for key in catalog.bucket.keys("full/") if "chat_history" in key]
    for version in list(catalog.bucket.versions(piece)):
        catalog.bucket.delete_version(piece, version.version_id)
    given = home.given(MOMENT=moment.isoformat(), PIECE=piece)
    with following("corruption", given, home.directory) as person:
        person.does("In hand", "With Airflow", *range(1, 8))

    assert same(before, synapse.fingerprint()) == []
    home.back_up("incremental-20261122T050000Z")


@pytest.mark.requirement("R7.1", "R9", "R2.2")
def test_a_key_is_lost(home: Home) -> None:
    keyring, passphrase = home.directory / "home" / "keyring.json", secrets.token_urlsafe(24)
    given = home.given(
        BACKUP_KEYRING=str(keyring),
        BACKUP_ESCROW_PASSPHRASE=passphrase,
        ESCROW=str(home.directory / "newest.escrow"),
        OLDER=str(home.directory / "older.escrow"),
    )
    for escrow in ("OLDER", "ESCROW"):
        home.cli("keyring", "export", given[escrow], BACKUP_ESCROW_PASSPHRASE=passphrase)
    with following("key_loss", given, home.directory) as person:
        person.does("In hand", 1, 2, 3)
        lose_the_first_kek(home, keyring)
        person.does(4, 5, 6, 7, 8, 9)

    assert {*Keyring.load(home.installation.keyring).keks} < {*Keyring.load(keyring).keks}


def lose_the_first_kek(home: Home, path: Path) -> None:
    """A rotation whose keyring lost the key of before, which is in the older escrow still."""
    home.cli("keyring", "rotate", "--kind", "kek", BACKUP_KEYRING=str(path))
    keyring = json.loads(path.read_text())
    del keyring["keks"][0]
    path.write_text(json.dumps(keyring))


@pytest.mark.requirement("R5.3", "R9", "R2.2")
def test_airflow_is_lost_and_synapse_with_it(home: Home) -> None:
    synapse = home.installation.synapse
    with following("airflow_loss", home.given(PROJECT=str(PROJECT)), home.directory) as person:
        write_settings(home.installation, person.directory / "my_settings.yaml")
        person.does("In hand", 1, 2, 3)
        synapse.destroy()
        person.does(4, 5)
        assert same(home.backed_up, synapse.fingerprint()) == []
        person.does(6)


def write_settings(installation: Installation, path: Path) -> None:
    """The settings file that somebody filled in."""
    connections = [
        {"conn_id": name, **{f"conn_{key}": value for key, value in fields.items() if key != "conn_type"}}
        | {"conn_type": fields["conn_type"]}
        for name, fields in installation.connections().items()
    ]
    path.write_text(json.dumps({"airflow": {"connections": connections, "pools": [], "variables": []}}))
    path.chmod(0o600)


@pytest.mark.requirement("R5.3", "R9", "R2.2")
def test_the_database_is_lost(home: Home) -> None:
    home.postgres.crash()
    home.postgres.reinitialise()
    with following("database_loss", home.given(), home.directory) as person:
        person.does("In hand", "With Airflow", 1, 2, 3)
        assert same(home.backed_up, home.installation.synapse.fingerprint()) == []
        person.does(4, 5, 6)


@pytest.mark.requirement("R5.3", "R9", "R2.2")
def test_the_primary_region_is_lost(home: Home) -> None:
    credentials = home.replica.session().get_credentials()
    assert credentials is not None
    checkout, client = home.directory / "dr", home.replica.client()
    if FILES not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        home.replica.create_bucket(FILES)
    with PostgresServer(home.directory / "postgres-dr", major=18, durable=False) as server:
        home.postgres.crash()
        home.primary.crash()
        given = home.given(
            **{"AWS_ACCESS_KEY_ID": credentials.access_key, "AWS_SECRET_ACCESS_KEY": credentials.secret_key},
            **{"AWS_ENDPOINT_URL": home.replica.endpoint_url, "AWS_REGION": home.replica.region},
            **server.superuser.environment(),
            CHECKOUT=str(checkout),
        )
        with following("region_loss", given, home.directory) as person:
            person.does("In hand", "With Airflow", 1, 2, 3, 4)
            back = Synapse(server.superuser, client, FILES, checkout).fingerprint()
            assert same(home.backed_up, back) == []
            person.does(5, 6, 7, 8)
