"""The runbooks for people, to the letter: the damage is done, the commands are typed, and all of it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from include.disaster.plan import load_plan
from include.sandbox.fingerprint import Fingerprint
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from tests.backed_up import back_up
from tests.following import ROOT, RUNBOOKS, declared, following, read_blocks

SCALE = 0.05
FOR_PEOPLE = sorted({scenario.runbook for scenario in load_plan().scenarios.values()} | {"key_loss"})


@dataclass
class Home:
    """A Synapse with its own servers, which a disaster may take; what its people have in hand."""

    directory: Path
    installation: Installation
    primary: S3Server
    replica: S3Server
    postgres: PostgresServer

    def given(self, near: S3Server, **more: str) -> dict[str, str]:
        """The variables of a person beside one of the two stores, with a profile for the other one."""
        credentials = near.session().get_credentials()
        assert credentials is not None
        return {
            **self.installation.break_glass(),
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_ENDPOINT_URL": near.endpoint_url,
            "AWS_REGION": near.region,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.directory / "credentials"),
            "REPLICA_PROFILE": "synapse-dr",
            "REPLICA_ENDPOINT_URL": self.replica.endpoint_url,
            "CHECKOUT": str(self.installation.synapse.configuration),
            "HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{ROOT / '.venv/bin'}:{self.postgres.binaries}:/usr/local/bin:/usr/bin:/bin",
            **more,
        }

    def __post_init__(self) -> None:
        profiles = ""
        for profile, settings, server in (
            ("synapse", ".s3cfg", self.primary),
            ("synapse-dr", ".s3cfg-dr", self.replica),
        ):
            credentials = server.session().get_credentials()
            assert credentials is not None
            host = server.endpoint_url.removeprefix("http://")
            profiles += f"[{profile}]\naws_access_key_id = {credentials.access_key}\n"
            profiles += f"aws_secret_access_key = {credentials.secret_key}\n"
            (self.directory / settings).write_text(
                f"[default]\naccess_key = {credentials.access_key}\nsecret_key = {credentials.secret_key}\n"
                f"host_base = {host}\nhost_bucket = {host}\nuse_https = False\nbucket_location = {server.region}\n"
            )
        (self.directory / "credentials").write_text(profiles)


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
        yield Home(directory, installation, primary, replica, postgres)


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


@pytest.mark.requirement("R5.3", "R9", "R2.2")
def test_the_primary_region_is_lost(home: Home) -> None:
    synapse = home.installation.synapse
    before = synapse.fingerprint()
    home.replica.create_bucket("synapse-files-dr")
    with PostgresServer(home.directory / "postgres-dr", major=18, durable=False) as server:
        home.postgres.crash()
        home.primary.crash()
        given = home.given(home.replica, CHECKOUT=str(home.directory / "dr"), **server.superuser.environment())
        with following("region_loss", given, home.directory) as person:
            person.does("In hand", "With Airflow", *range(1, 9))
        back = type(synapse)(server.superuser, home.replica.client(), "synapse-files-dr", home.directory / "dr")
        assert same(before, back.fingerprint()) == []
