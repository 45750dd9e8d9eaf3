"""`keyring`: rotated, wrapped, retired, shown; to the escrow and back; and an auditor's half (R7.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from include.cli import keyring as commands
from include.cli.__main__ import app
from include.errors import BackupError
from include.pipeline.escrow import EscrowRefused
from include.pipeline.keys import KEYRING_VARIABLE, Keyring, KeyringError
from include.pipeline.store import Bucket
from include.repository import rotation
from include.repository.catalog import Catalog
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import new_attempt
from include.repository.rotation import NotWrapped, StillNeeded
from include.sandbox.s3 import S3Server
from tests import manifests

OWNER = {"owner": "full-20261122T000000Z", "attempt": "0123456789abcdef"}
PASSPHRASE = "a passphrase that is long"
pytestmark = pytest.mark.requirement("R7.1")
Command = Callable[..., Result]


@dataclass
class Place:
    path: Path
    primary: Bucket
    replica: Bucket
    run: Command

    @property
    def keyring(self) -> Keyring:
        return Keyring.load(self.path)


@pytest.fixture
def at(s3_primary: S3Server, s3_replica: S3Server, bucket: str, tmp_path: Path) -> Place:
    second = s3_replica.create_bucket(f"replica-{new_attempt()}")
    primary, replica = (
        Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)
        for server, name in ((s3_primary, bucket), (s3_replica, second))
    )
    path = tmp_path / "keyring.json"
    Keyring.create(path)
    profiles = tmp_path / "credentials"
    profiles.write_text("".join(map(profile, (("default", s3_primary), ("second", s3_replica)))))
    variables = {
        KEYRING_VARIABLE: str(path),
        "AWS_SHARED_CREDENTIALS_FILE": str(profiles),
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_REGION": s3_primary.region,
        "AWS_ENDPOINT_URL": s3_primary.endpoint_url,
        "REPLICA_ENDPOINT_URL": s3_replica.endpoint_url,
        "REPLICA_PROFILE": "second",
        "COLUMNS": "300",
    }

    def run(*arguments: str, typed: str | None = None, **more: str) -> Result:
        options = ["--bucket", bucket, "--replica-bucket", second, *arguments]
        return CliRunner().invoke(app, options, env={**variables, **more}, input=typed)

    return Place(path, primary, replica, run)


def profile(named: tuple[str, S3Server]) -> str:
    credentials = named[1].session().get_credentials()
    assert credentials is not None
    return (
        f"[{named[0]}]\naws_access_key_id = {credentials.access_key}\n"
        f"aws_secret_access_key = {credentials.secret_key}\n"
    )


def refused(done: Result, error: type[BackupError]) -> str:
    assert isinstance(done.exception, error), done.exception
    return str(done.exception)


def test_a_rotation_from_the_first_command_to_the_last(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old = at.keyring
    dek = create_data_key(at.primary, old, **OWNER)
    [key] = at.primary.keys("keys/")
    at.replica.create(key, at.primary.read(key))
    assert "is current: no other follows" in refused(at.run("keyring", "retire", old.current_kek), StillNeeded)

    made = at.run("keyring", "rotate")
    again = at.run("keyring", "rotate")
    wrapped = at.run("keyring", "wrap")
    soon = at.run("keyring", "retire", old.current_kek)
    shown = json.loads(at.run("keyring", "show", "--json").stdout)

    assert (made.exit_code, again.exit_code, wrapped.exit_code) == (0, 0, 0)
    assert at.keyring.ids - old.ids == {each for each in at.keyring.ids if each not in old.ids and each in made.stdout}
    assert len(at.keyring.ids) == 4
    assert "under way already" in again.stdout
    assert wrapped.stdout.count("1 data keys, 1 wraps made, 1 proved.") == 2
    assert "wraps until" in refused(soon, StillNeeded)
    states = {each["id"]: each["state"].partition(" until")[0].partition(" from")[0] for each in shown}
    new = at.keyring.lasting_keks[0], at.keyring.newest_signing_key
    assert states == {
        old.current_kek: "current",
        new[0]: "current",
        old.current_signing_key: "current",
        new[1]: "proves; signs",
    }
    assert [bool(each["due"]) for each in shown] == [False, True, False, True]

    later = datetime.now(UTC) + timedelta(days=8)
    monkeypatch.setattr(rotation, "datetime", type("Later", (datetime,), {"now": classmethod(lambda *_: later)}))
    create_data_key(at.replica, old, owner="another", attempt="0" * 16)
    needed = refused(at.run("keyring", "retire", old.current_kek), StillNeeded)
    assert str(at.replica) in needed
    assert at.run("keyring", "wrap").exit_code == 0
    gone = [at.run("keyring", "retire", key) for key in (old.current_kek, old.current_signing_key)]
    assert [done.exit_code for done in gone] == [0, 0], [done.exception for done in gone]
    assert old.current_kek not in at.keyring.keks
    assert at.keyring.signing_keys[old.current_signing_key].private is None
    for store in (at.primary, at.replica):
        assert open_data_key(store, at.keyring, **OWNER) == dek


def test_show_tells_no_key(at: Place) -> None:
    for arguments in (["show"], ["show", "--json"]):
        done = at.run("keyring", *arguments)
        assert done.exit_code == 0
        assert at.keyring.current_kek in done.stdout
        document = json.loads(at.path.read_text())
        hidden = [document["keks"][0]["key"], document["signing_keys"][0]["private"]]
        assert not [secret for secret in hidden if secret in done.output]


def test_what_cannot_be_wrapped_is_named_with_the_bucket(at: Place, tmp_path: Path) -> None:
    create_data_key(at.primary, Keyring.create(tmp_path / "lost.json"), **OWNER)
    told = refused(at.run("keyring", "wrap"), NotWrapped)
    assert OWNER["attempt"] in told
    assert str(at.primary) in told


def test_the_escrow_and_the_bucket_are_enough(at: Place, tmp_path: Path) -> None:
    catalog = Catalog(at.primary, at.keyring)
    manifest = manifests.commit(catalog, manifests.make())
    at.run("keyring", "rotate")
    at.run("keyring", "wrap")
    safe, content = tmp_path / "escrow.json", at.path.read_bytes()
    phrase = tmp_path / "phrase"
    phrase.write_text(PASSPHRASE + "\n")

    typed = at.run("keyring", "export", str(safe), typed=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert typed.exit_code == 0, typed.output
    assert safe.stat().st_mode & 0o777 == 0o600
    assert PASSPHRASE not in typed.output
    refused(at.run("keyring", "export", str(safe), "--passphrase-file", str(phrase)), commands.NotWritten)
    refused(at.run("keyring", "import", str(safe), "--passphrase-file", str(phrase)), commands.NotWritten)

    at.path.unlink()
    for wrong in ({commands.PASSPHRASE_VARIABLE: PASSPHRASE + "!"}, {commands.PASSPHRASE_VARIABLE: "short"}):
        refused(at.run("keyring", "import", str(safe), **wrong), EscrowRefused)
    cut = tmp_path / "cut.json"
    cut.write_bytes(safe.read_bytes()[:-40])
    assert "not all of it" in refused(
        at.run("keyring", "import", str(cut), **{commands.PASSPHRASE_VARIABLE: PASSPHRASE}), EscrowRefused
    )
    assert not at.path.exists()
    back = at.run("keyring", "import", str(safe), "--passphrase-file", str(phrase))

    assert back.exit_code == 0, back.output
    assert (at.path.read_bytes(), at.path.stat().st_mode & 0o777) == (content, 0o600)
    assert Catalog(at.primary, at.keyring).get(manifest.backup) == manifest
    open_data_key(at.primary, at.keyring, owner=manifest.id, attempt=manifest.attempt)


def test_an_auditor_proves_and_opens_nothing(at: Place, tmp_path: Path) -> None:
    public = tmp_path / "public.json"
    create_data_key(at.primary, at.keyring, **OWNER)
    assert at.run("keyring", "public", str(public)).exit_code == 0
    auditor = Keyring.load(public)

    auditor.check({"id": 1}, at.keyring.sign({"id": 1}))
    for cannot in (
        lambda: auditor.sign({"id": 1}),
        lambda: open_data_key(at.primary, auditor, **OWNER),
        lambda: create_data_key(at.primary, auditor, owner="another", attempt="0" * 16),
        lambda: auditor.current_kek,
    ):
        with pytest.raises(KeyringError):
            cannot()
    document = json.loads(public.read_text())
    assert document["keks"] == []
    assert [set(key) for key in document["signing_keys"]] == [{"id", "public"}]


def test_a_keyring_in_kms_is_made_shown_and_rotated(at: Place, s3_primary: S3Server) -> None:
    client = s3_primary.session().client("kms", endpoint_url=s3_primary.endpoint_url)
    first, second = (client.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
    options = ("--kms-endpoint", s3_primary.endpoint_url)
    at.path.unlink()

    assert at.run("keyring", "create", str(at.path), "--kms", first, *options).exit_code == 0
    assert "AWS KMS, eu-west-1" in at.run("keyring", "show").stdout
    refused(at.run("keyring", "rotate", "--kind", "kek"), rotation.NotRotated)
    assert at.run("keyring", "rotate", "--kind", "kek", "--kms", second, *options).exit_code == 0
    assert len(at.keyring.keks) == 2
    assert "There is not one" in refused(at.run("keyring", "create", "x", "--kms-endpoint", "http://x"), BackupError)
