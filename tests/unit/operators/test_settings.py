"""`airflow_settings.yaml`, without astro."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from include.operators.settings import exports, main
from include.policy import load_policy
from include.settings import PLACEHOLDER, SettingsRefused, read_settings

OURS = Path(__file__).parents[3] / "airflow_settings.yaml"
ODD = 'it\'s $HOME; `rm` "x" ü'


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The project's file, every placeholder replaced."""
    file = tmp_path / "settings.yaml"
    file.write_text(OURS.read_text().replace(PLACEHOLDER, "real"))
    return file


def test_our_file_holds_every_connection_that_the_policy_names(filled: Path) -> None:
    policy = load_policy()
    database = policy.sources.database
    named = {
        database.barrier_connection,
        database.dump_connection,
        database.replication_connection,
        database.scratch_connection,
        policy.sources.objects.connection,
        policy.sources.configuration.connection,
        policy.storage.primary.connection,
        policy.storage.replica.connection,
        policy.recovery.objects_connection,
    }
    assert named | {"synapse_notifications"} == set(read_settings(filled).connections)


def test_what_only_a_recovery_over_the_live_needs_is_named_and_not_kept(filled: Path) -> None:
    recovery = load_policy().recovery
    for name in (recovery.live_database_connection, recovery.live_objects_connection):
        assert f"# - conn_id: {name} " in OURS.read_text()
        assert name not in read_settings(filled).connections


def test_our_file_holds_no_secret() -> None:
    lines = [line.split("#")[0] for line in OURS.read_text().splitlines()]
    secrets = [line.split(":", 1)[1] for line in lines if "conn_password:" in line]
    assert {secret.strip() for secret in secrets} == {PLACEHOLDER}


def test_a_placeholder_that_is_left_is_refused_by_name() -> None:
    with pytest.raises(SettingsRefused, match=r"synapse_database_dump\.password.*synapse_notifications\.extra"):
        read_settings(OURS)


@pytest.mark.parametrize(
    "text", ["", "a: [", "airflow:\n  connections:\n    - conn_type: aws\n", "airflow: [1]", "airflow:\n"]
)
def test_what_is_not_the_format_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsRefused, match=r"settings\.yaml"):
        read_settings(file)


def test_the_exports_survive_a_shell(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        json.dumps(
            {
                "airflow": {
                    "connections": [
                        {"conn_id": "one", "conn_type": "postgres", "conn_password": ODD, "conn_extra": {"a": 1}}
                    ],
                    "variables": [{"variable_name": "colour", "variable_value": ODD}],
                }
            }
        )
    )
    lines = "\n".join(exports(read_settings(file)))
    program = f'{lines}\n"{sys.executable}" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    told = subprocess.run(["/bin/sh", "-c", program], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    environment = json.loads(told.stdout)
    assert json.loads(environment["AIRFLOW_CONN_ONE"]) == {"conn_type": "postgres", "password": ODD, "extra": {"a": 1}}
    assert environment["AIRFLOW_VAR_COLOUR"] == ODD


def test_the_command_line_tells_what_to_do(capsys: pytest.CaptureFixture[str], filled: Path) -> None:
    assert main([str(OURS)]) == 1
    assert "Copy the file" in capsys.readouterr().err
    assert main([str(filled)]) == 0
    assert capsys.readouterr().out.startswith("export AIRFLOW_CONN_SYNAPSE_DATABASE_BARRIER=")


def test_a_repr_shows_no_secret(filled: Path) -> None:
    assert "real" not in repr(read_settings(filled))
