"""The steps of a rotation: what is made on which day, by which worker, and who hears of it (R7.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.operators.keys import CheckKeys, MakeKeys, OtherKeyring, ReportRotation, RetireKey, WrapDataKeys
from include.operators.run import Surroundings
from include.pipeline import keyring_file
from include.pipeline.keyring_file import KeyringFixed
from include.pipeline.keys import KEYRING_VARIABLE, Keyring, UnknownKey
from include.policy import load_policy
from include.repository.rotation import make_keys

pytestmark = pytest.mark.requirement("R7.1")
OLD = datetime.now(UTC) - timedelta(days=400)
Keys = Callable[[datetime], Path]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Make the keyring of a worker, as old as it is told."""

    def made(when: datetime) -> Path:
        Keyring.create(tmp_path / "keyring.json", now=when)
        monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "keyring.json"))
        return tmp_path / "keyring.json"

    return made


def context(told: dict[str, Any] | None = None, *, kinds: str = "due", retire: str = "") -> Any:
    """A run's form, and what its tasks told."""
    ti = SimpleNamespace(xcom_pull=lambda task_ids, **_: (told or {}).get(task_ids))
    return {"params": {"kinds": kinds, "kms": [], "retire": retire}, "ti": ti}


def check(**form: str) -> list[str]:
    return list(CheckKeys(task_id="check").step(Surroundings(), context(**form))["make"])


def test_only_what_is_due_or_asked_for_is_made_and_once(keys: Keys) -> None:
    path = keys(OLD)
    assert check() == ["kek", "signing"]
    assert check(kinds="signing") == ["signing"]
    new = MakeKeys(task_id="new_keys").step(Surroundings(), context({"check": {"make": ["kek"]}}))
    assert new["keks"] == list(Keyring.load(path).lasting_keks)
    assert set(new["made"]) <= set(new["keks"])
    assert (check(), check(kinds="both"), check(kinds="kek")) == (["signing"], ["signing"], [])


def test_a_young_keyring_is_left_alone_unless_asked(keys: Keys) -> None:
    keys(datetime.now(UTC))
    assert check() == []
    assert check(kinds="both") == ["kek", "signing"]


def test_a_file_that_cannot_be_replaced_hinders_only_who_must(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keys(datetime.now(UTC))
    monkeypatch.setattr(keyring_file.os, "access", lambda *_: False)
    assert check() == []
    for form in ({"kinds": "both"}, {"retire": Keyring.load(path).current_kek}):
        with pytest.raises(KeyringFixed) as refused:
            check(**form)
        assert "keyring rotate" in refused.value.mend


def test_a_key_that_is_not_there_is_refused_before_anything(keys: Keys) -> None:
    keys(datetime.now(UTC))
    with pytest.raises(UnknownKey, match="kek-nobody"):
        check(retire="kek-nobody")
    # What was there when the run began, and is not now, an earlier try of the task has retired.
    done = RetireKey(task_id="retire").step(stand_in(), context(retire="kek-nobody"))
    assert done == {"retired": "kek-nobody"}


def test_a_worker_with_another_file_does_not_wrap(keys: Keys) -> None:
    keys(datetime.now(UTC))
    wrap = WrapDataKeys(task_id="wrap_primary", store="primary")
    with pytest.raises(OtherKeyring, match="kek-elsewhere") as refused:
        wrap.step(Surroundings(), context({"new_keys": {"keks": ["kek-elsewhere"]}}))
    assert "shared mount" in refused.value.mend


def test_a_day_on_which_nothing_happened_is_told_to_nobody(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    keys(datetime.now(UTC))
    report = ReportRotation(task_id="report", buckets=["wrap_primary"])
    told: list[Any] = []
    monkeypatch.setattr(ReportRotation, "tell", lambda _, policy, words: told.append(words()) or {})
    monkeypatch.setattr("include.operators.keys.links_of", lambda *_: {})
    monkeypatch.setattr("include.operators.keys.failures_of", lambda _: ())
    quiet = {"new_keys": {"made": [], "keks": ["k"]}, "wrap_primary": {"wrapped": 0}, "retire": {"retired": ""}}
    for change in (
        {},
        {"new_keys": {"made": ["kek-1"], "keks": ["kek-1"]}},
        {"wrap_primary": {"bucket": "s3://b", "wrapped": 3}},
        {"retire": {"retired": "kek-0"}},
    ):
        report._take(context({**quiet, **change}))
    assert [notification.kind for notification in told] == ["rotated"] * 3
    assert "every worker" in str(told[0].facts["to do"])
    assert "wrapped 3" in str(told[1].facts["wrap_primary"])
    assert told[2].facts["retired"] == "kek-0"


def test_kms_is_asked_with_the_credentials_of_the_bucket_there(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    keys(datetime.now(UTC))
    storage = load_policy().storage
    for number, store in enumerate((storage.primary, storage.replica)):
        connection = {"conn_type": "aws", "login": f"AKIA{number}", "password": "x"}
        monkeypatch.setenv(f"AIRFLOW_CONN_{store.connection.upper()}", json.dumps(connection))
    here = Surroundings()
    for number, store in enumerate((storage.primary, storage.replica)):
        session = here.sessions(store.region)
        credentials = session.get_credentials()
        assert credentials is not None
        assert (credentials.access_key, session.region_name) == (f"AKIA{number}", store.region)
    assert here.sessions("ap-south-1").region_name == "ap-south-1"


def stand_in() -> Any:
    """Surroundings whose buckets nobody may reach."""
    return SimpleNamespace(keyring=Keyring.from_environment())


def test_two_workers_make_one_key(keys: Keys) -> None:
    path = keys(OLD)
    make_keys(path, ["kek"], load_policy().keys)
    again = MakeKeys(task_id="new_keys").step(Surroundings(), context({"check": {"make": ["kek"]}}))
    assert again == {"made": [], "keks": list(Keyring.load(path).lasting_keks)}
