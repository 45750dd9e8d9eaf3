"""`docker-compose.yaml` says what the code reads. It is not started here: no test has a container engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from include.operators.run import SCRATCH_VARIABLE
from include.operators.settings import load
from include.pipeline.keys import KEYRING_VARIABLE

ROOT = Path(__file__).parents[3]
PARTS = {"api-server", "scheduler", "dag-processor", "triggerer"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yaml").read_text()))


def test_it_has_every_part_of_airflow_and_what_they_need(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == PARTS | {"airflow-init", "metadata", "objectstore", "wal-stream"}
    assert {services[part]["command"] for part in PARTS} == PARTS
    for part in PARTS:
        assert services[part]["depends_on"]["airflow-init"]["condition"] == "service_completed_successfully"


def test_the_image_is_the_airflow_that_is_locked(compose: dict[str, Any]) -> None:
    [locked] = re.findall(r"^apache-airflow==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"FROM apache/airflow:{locked}" in (ROOT / "Dockerfile").read_text()
    assert {compose["services"][part]["build"] for part in PARTS} == {"."}


def test_the_code_finds_what_it_reads_in_the_environment(compose: dict[str, Any]) -> None:
    for name in (*PARTS, "airflow-init"):
        service = compose["services"][name]
        mounts = {volume.rsplit(":", 2)[-2 if volume.endswith(":ro") else -1] for volume in service["volumes"]}
        environment = service["environment"]
        assert {KEYRING_VARIABLE, SCRATCH_VARIABLE, "PYTHONPATH", "AIRFLOW_HOME"} <= set(environment)
        assert {environment["AIRFLOW_HOME"], environment[SCRATCH_VARIABLE]} <= mounts
        assert environment["AIRFLOW__CORE__DAGS_FOLDER"] in mounts
        if name in PARTS:
            assert environment[KEYRING_VARIABLE] in mounts


@pytest.mark.requirement("R5.5")
def test_the_stream_is_a_service_that_is_asked_for(compose: dict[str, Any]) -> None:
    stream = compose["services"]["wal-stream"]
    assert stream["profiles"] == ["stream"]
    assert stream["command"][:4] == ["python", "-m", "include.cli", "stream"]
    assert stream["restart"] == "unless-stopped"
    mounts = {volume.rsplit(":", 2)[-2 if volume.endswith(":ro") else -1] for volume in stream["volumes"]}
    environment = stream["environment"]
    assert {environment[KEYRING_VARIABLE], environment[SCRATCH_VARIABLE], stream["command"][-1]} <= mounts


def test_every_volume_and_mounted_directory_exists(compose: dict[str, Any]) -> None:
    sources = [volume.split(":")[0] for each in compose["services"].values() for volume in each.get("volumes", [])]
    named = {source for source in sources if re.fullmatch(r"\w+", source)}
    assert named == set(compose["volumes"])
    ours = {source for source in sources if source.startswith("./")}
    assert ours == {"./dags", "./plugins", "./include", "./docs"}
    assert all((ROOT / source).is_dir() for source in ours)


def test_no_secret_has_a_default_and_no_port_is_open_to_the_network(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):-", text)) == {"AIRFLOW_UID"}
    secrets = set(re.findall(r"\$\{(\w+(?:KEY|PASSWORD|SECRET|KEYRING_FILE)):\?", text))
    assert secrets >= {"AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET", "METADATA_PASSWORD", "OBJECTSTORE_SECRET_KEY"}
    ports = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_object_store_lets_nobody_in_without_a_key(compose: dict[str, Any]) -> None:
    [config] = compose["services"]["objectstore"]["configs"]
    assert f"-s3.config={config['target']}" in compose["services"]["objectstore"]["command"]
    identities = json.loads(compose["configs"][config["source"]]["content"])["identities"]
    assert all(credentials["secretKey"] for each in identities for credentials in each["credentials"])


def test_the_settings_are_loaded_by_our_own_loader(compose: dict[str, Any]) -> None:
    init = compose["services"]["airflow-init"]
    assert f"python -m {load.__module__} --import /run/backup/settings.yaml" in init["command"][0]
    assert any(volume.endswith(":/run/backup/settings.yaml:ro") for volume in init["volumes"])
