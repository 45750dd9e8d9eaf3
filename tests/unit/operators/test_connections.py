"""Airflow connections, as the engine's plain values."""

from __future__ import annotations

import json

import pytest
from airflow.sdk._shared.secrets_masker import redact

from include.operators import connections
from include.operators.connections import ConnectionUnusable

POSTGRES = {
    "conn_type": "postgres",
    "host": "db.example",
    "login": "synapse_backup_dump",
    "password": "correct horse",
    "schema": "synapse",
}
AWS = {"conn_type": "aws", "login": "AKIAEXAMPLE", "password": "battery staple"}
SMTP = {"conn_type": "smtp", "host": "mail.example", "login": "backups", "password": "x", "extra": {}}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    return Given(monkeypatch)


class Given:
    """Sets the connection `one`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, *parts: dict[str, object], extra: dict[str, object] | None = None) -> str:
        connection: dict[str, object] = {"extra": extra or {}}
        for part in parts:
            connection |= part
        self._monkeypatch.setenv("AIRFLOW_CONN_ONE", json.dumps(connection))
        return "one"


def test_a_login_has_the_tls_settings_of_the_extras(given: Given) -> None:
    one = given(POSTGRES, extra={"sslmode": "verify-full", "sslrootcert": "/ca.pem", "options": "-c role=x"})
    login = connections.database_login(one)
    assert (login.host, login.port, login.user, login.dbname) == ("db.example", 5432, "synapse_backup_dump", "synapse")
    assert (login.sslmode, login.sslrootcert, login.options) == ("verify-full", "/ca.pem", "-c role=x")
    assert login.password == "correct horse"
    assert "horse" not in repr(login)


@pytest.mark.parametrize("lacking", ["host", "login", "schema"])
def test_a_login_that_lacks_something_is_refused_by_name(lacking: str, given: Given) -> None:
    one = given({name: value for name, value in POSTGRES.items() if name != lacking})
    with pytest.raises(ConnectionUnusable, match=f"connection one has no {lacking}"):
        connections.database_login(one)


def test_a_bucket_is_the_connections_own_before_the_policys(given: Given) -> None:
    extra = {
        "region_name": "us-east-1",
        "endpoint_url": "http://127.0.0.1:1",
        "service_config": {"s3": {"bucket_name": "own"}},
    }
    own = connections.bucket(given(AWS, extra=extra), name="policy", region="eu-west-1")
    assert (own.name, own.endpoint_url, own.client.meta.region_name) == ("own", "http://127.0.0.1:1", "us-east-1")
    policy = connections.bucket(given(AWS), name="policy", region="eu-west-1")
    assert (policy.name, policy.endpoint_url, policy.client.meta.region_name) == ("policy", None, "eu-west-1")


def test_a_bucket_without_a_name_is_refused(given: Given) -> None:
    with pytest.raises(ConnectionUnusable, match="bucket_name"):
        connections.bucket(given(AWS))


def test_a_bucket_keeps_the_credentials_of_the_connection(given: Given) -> None:
    credentials = connections.bucket(given(AWS), name="b", region="eu-west-1").client._request_signer._credentials  # type: ignore[attr-defined]
    assert (credentials.access_key, credentials.secret_key) == ("AKIAEXAMPLE", "battery staple")


def test_a_connection_that_is_missing_is_never_replaced_by_what_the_worker_has() -> None:
    # The provider's hook would go on with the credentials of the machine.
    for resolve in (connections.database_login, connections.bucket, connections.configuration):
        with pytest.raises(ConnectionUnusable, match="no Airflow connection absent"):
            resolve("absent")


def test_the_configuration_is_the_path_of_a_checkout(given: Given) -> None:
    one = given({"conn_type": "generic", "host": "/srv/synapse-configuration"})
    assert str(connections.configuration(one).checkout) == "/srv/synapse-configuration"


@pytest.mark.parametrize(
    ("extra", "security", "port"),
    [
        ({}, "tls", 465),
        ({"disable_ssl": True}, "starttls", 587),
        ({"disable_ssl": True, "disable_tls": True}, "none", 587),
    ],
)
def test_a_mail_server_is_encrypted_unless_it_is_told_not_to_be(
    extra: dict[str, object], security: str, port: int, given: Given
) -> None:
    server = connections.mail_server(given(SMTP, {"extra": {"from_email": "backups@synapse.example", **extra}}))
    assert (server.security, server.port) == (security, port)


def test_a_channel_is_the_password_of_its_connection_and_is_masked_everywhere(given: Given) -> None:
    url = "slack://TokenAAAA/TokenBBBB/TokenCCCC"
    one = connections.channel(given({"conn_type": "generic", "password": url}))
    assert one.url == url
    assert "Token" not in repr(one)
    assert redact(f"posting to {url}, /services/TokenBBBB") == "posting to ***, /services/***"


def test_whoever_cannot_be_reached_is_said_so() -> None:
    for resolve in (connections.mail_server, connections.channel):
        with pytest.raises(ConnectionUnusable, match="no Airflow connection absent"):
            resolve("absent")


def test_a_channel_without_a_url_is_refused(given: Given) -> None:
    with pytest.raises(ConnectionUnusable, match="Apprise URL"):
        connections.channel(given({"conn_type": "generic", "host": "x"}))
