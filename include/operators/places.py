"""Where a person finds things: a run, a task, the page of the runbook that helps, as addresses of Airflow's pages."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from airflow.sdk.configuration import conf

RUNBOOKS = "/runbooks"
"""Where the plugin serves docs/runbooks/, below Airflow's own address."""

VALIDATIONS = "/validations"
"""Where the plugin serves the pages of validations."""


def run_url(dag_id: str, run_id: str, task_id: str = "") -> str:
    """A run, or one task of it; empty when Airflow was not told its own address (`[api] base_url`)."""
    path = f"/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    return _page(f"{path}/tasks/{quote(task_id, safe='')}" if task_id else path)


def runbook_url(dag_id: str, task_id: str = "") -> str:
    """What to do about a DAG, or about one red task of it; empty as `run_url` is."""
    return _page(runbook_path(dag_id, task_id))


def runbook_path(dag_id: str, task_id: str = "") -> str:
    """The same without Airflow's address: enough for a page of Airflow's own."""
    return f"{RUNBOOKS}/{quote(dag_id, safe='')}" + (f"#{quote(task_id, safe='')}" if task_id else "")


def validation_url(dag_id: str, run_id: str, task_id: str) -> str:
    """What a task found that validated something; empty as `run_url` is."""
    return _page(validation_path(dag_id, run_id, task_id))


def validation_path(dag_id: str, run_id: str, task_id: str) -> str:
    """The same without Airflow's address."""
    return "/".join((VALIDATIONS, *(quote(name, safe="") for name in (dag_id, run_id, task_id))))


def login_path(path: str) -> str:
    """Where a person logs in to Airflow, and is led on to one of its paths; both below Airflow's own."""
    below = urlsplit(str(conf.get("api", "base_url", fallback="") or "")).path.rstrip("/")
    return f"{below}/api/v2/auth/login?next={quote(below + quote(path.removeprefix(below)), safe='')}"


def _page(path: str) -> str:
    base = str(conf.get("api", "base_url", fallback="") or "")
    return f"{base.rstrip('/')}{path}" if base else ""
