"""What a person gets where there is no page: the way to log in and back, or words; a program gets what it got."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from include.airflow_plugin.answers import pages

PERSON = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Pages below Airflow, which is below another address; its proxy tells of that, or does not."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/backups/")
    app, airflow = pages("a test"), FastAPI()

    @app.get("/{status}/{what}")
    def refuse(status: int, what: str) -> None:
        raise HTTPException(status, f"No <b>{what}</b>.")

    for path in ("/pages", "/backups/pages"):
        airflow.mount(path, app)
    return TestClient(airflow, follow_redirects=False)


@pytest.mark.requirement("R7.3")
def test_who_is_not_logged_in_is_led_to_the_login_and_back(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/pages", "/backups/pages"):
        answer = client.get(f"{path}/401/a%20%2B%26", headers=PERSON)
        assert answer.status_code == 303
        back = "%2Fbackups%2Fpages%2F401%2Fa%2520%252B%2526"
        assert answer.headers["location"] == f"/backups/api/v2/auth/login?next={back}"
    assert client.get("/pages/401/x").status_code == 401
    monkeypatch.delenv("AIRFLOW__API__BASE_URL")
    answer = client.get("/pages/401/x", headers=PERSON)
    assert answer.headers["location"] == "/api/v2/auth/login?next=%2Fpages%2F401%2Fx"


def test_what_is_the_matter_is_a_page_for_people_and_a_detail_for_programs(client: TestClient) -> None:
    answer = client.get("/pages/404/x", headers=PERSON)
    assert answer.status_code == 404
    assert "<p>No &lt;b&gt;x&lt;/b&gt;.</p>" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<p>Not Found</p>" in client.get("/pages/a/way/too/far", headers=PERSON).text
    assert client.get("/pages/404/x").json() == {"detail": "No <b>x</b>."}
