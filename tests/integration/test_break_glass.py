"""The command line, with Airflow absent: what it prints, how it fails, and a whole restore."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import include
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation

BACKUP = BackupId.parse("full-20261122T000000Z")
ROOT = Path(__file__).parents[2]
KNOW_AIRFLOW = ("include.operators", "include.airflow_plugin")

WITHOUT_AIRFLOW = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("airflow", "great_expectations"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def cli(installation: Installation, *arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line as on a bare machine: the usual variables, no Airflow to import."""
    program = WITHOUT_AIRFLOW + "from include.cli.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, "--bucket", installation.backups, *arguments],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **installation.break_glass(), **changes},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stdout + done.stderr).decode()


def test_everything_but_the_airflow_rooms_imports_with_airflow_absent() -> None:
    modules = [
        module.name
        for module in pkgutil.walk_packages(include.__path__, "include.")
        if not module.name.startswith(KNOW_AIRFLOW)
    ]
    assert "include.cli.__main__" in modules
    assert "include.backup.full" in modules
    loaded = subprocess.run(
        [sys.executable, "-c", WITHOUT_AIRFLOW + "".join(f"import {name}\n" for name in modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.requirement("R5.1", "R2.1", "R2.2", "R2.3")
def test_it_brings_everything_back(installation: Installation, manifest: Manifest) -> None:
    synapse = installation.synapse
    before = synapse.fingerprint()
    synapse.destroy()

    done = cli(
        installation,
        *("restore", "latest", "--json", "--database", synapse.database.dbname, "--objects", synapse.bucket),
        *("--configuration", str(synapse.configuration)),
    )

    assert done.returncode == 0, told(done)
    facts = json.loads(done.stdout)
    assert facts["id"] == manifest.id
    assert facts["database"]["rows"] == manifest.database.rows
    assert facts["objects"]["objects"] == manifest.objects.objects
    assert before.difference(synapse.fingerprint()) == []


def test_it_lists_and_shows(installation: Installation, manifest: Manifest) -> None:
    [listed] = json.loads(cli(installation, "list", "--json").stdout)
    shown = json.loads(cli(installation, "show", manifest.id, "--json").stdout)

    assert listed["id"] == manifest.id
    assert listed["rows"] == manifest.database.rows
    assert shown.pop("verification")["state"] in ("verified", "not yet")
    assert shown == manifest.model_dump(mode="json")
    assert manifest.id in told(cli(installation, "list"))
    assert "database/chat_history.pgdump" in told(cli(installation, "show", "latest"))


@pytest.mark.requirement("R4.5")
def test_it_verifies(installation: Installation, manifest: Manifest) -> None:
    done = cli(installation, "verify", manifest.id, "--sample", "billing", "--json")

    assert done.returncode == 0, told(done)
    facts = json.loads(done.stdout)
    assert facts["integrity"]["objects"] == manifest.objects.objects
    assert facts["sizes"]["rows"] == manifest.database.rows > facts["sample"]["rows"] > 0
    [listed] = json.loads(cli(installation, "list", "--json").stdout)
    assert listed["verification"]["state"] == "verified"
    assert {record["key"] for record in listed["verification"]["records"]} == {
        facts[proof]["record"] for proof in ("integrity", "sizes", "sample")
    }
    shown = told(cli(installation, "show", manifest.id))
    assert "integrity passed" in shown
    assert "sample of billing passed" in shown


def test_it_decrypts_to_standard_output_and_to_a_new_file(
    installation: Installation, manifest: Manifest, tmp_path: Path
) -> None:
    artifact = manifest.artifact("config/repository.bundle")
    [segment] = artifact.segments
    target = tmp_path / "repository.bundle"

    printed = cli(installation, "decrypt", manifest.id, artifact.name)
    written = cli(installation, "decrypt", manifest.id, artifact.name, "--output", str(target))
    again = cli(installation, "decrypt", manifest.id, artifact.name, "--output", str(target))

    assert printed.returncode == written.returncode == 0, told(written)
    assert hashlib.sha256(printed.stdout).hexdigest() == segment.raw_sha256
    assert target.read_bytes() == printed.stdout
    assert target.stat().st_mode & 0o777 == 0o600
    assert again.returncode == 1
    assert str(target) in told(again).replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "full-20200101T000000Z"), 3, ["full-20200101T000000Z", "list"]),
        (("show", "nonsense"), 1, ["nonsense"]),
        (("restore", "latest"), 2, ["--database"]),
        (("explode",), 2, ["explode"]),
        (("decrypt", "latest", "database/nothing"), 1, ["database/nothing", "database/globals.sql"]),
        (("restore", "latest", "--database", "postgres"), 1, ["postgres", "exists"]),
        (("restore", "latest", "--configuration", "/"), 1, ["not empty"]),
    ],
)
def test_an_error_says_what_and_what_next(
    installation: Installation, manifest: Manifest, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    done = cli(installation, *arguments)

    assert done.returncode == code, told(done)
    assert [word for word in words if word not in told(done)] == []
    assert "Traceback" not in told(done)


@pytest.mark.requirement("R7.1")
def test_a_keyring_that_others_can_read_is_refused(
    installation: Installation, manifest: Manifest, tmp_path: Path
) -> None:
    open_to_all = tmp_path / "keyring.json"
    open_to_all.write_bytes(installation.keyring.read_bytes())
    open_to_all.chmod(0o644)

    done = cli(installation, "list", BACKUP_KEYRING=str(open_to_all))

    assert done.returncode == 1
    assert "chmod 600" in told(done)


def test_no_error_tells_a_secret(installation: Installation, manifest: Manifest) -> None:
    secrets = [installation.break_glass()[name] for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD")]
    failures = [
        cli(installation, "--verbose", "list", AWS_ENDPOINT_URL="http://127.0.0.1:1"),
        cli(installation, "--verbose", "list", AWS_ACCESS_KEY_ID="AKIASTRANGER"),
        cli(installation, "--verbose", "restore", "latest", "--database", "x", PGPORT="1"),
        cli(installation, "--verbose", "restore", "latest", "--database", "x", PGUSER="nobody_we_know"),
    ]
    assert {done.returncode for done in failures} == {1}, [told(done) for done in failures]
    assert [told(done) for done in failures if any(secret in told(done) for secret in secrets)] == []
    assert all("next" in told(done) for done in failures)
