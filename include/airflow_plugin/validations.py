"""The pages of validations (R5.2), one click from their tasks: out of the bucket, and nothing else of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal

from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, HTTPException
from fastapi.responses import HTMLResponse

from include.airflow_plugin.answers import HEADERS, pages
from include.errors import BackupError
from include.operators.places import VALIDATIONS

app = pages("Validations of what was recovered")


# A plugin's routes are open to everybody unless they ask: whoever may see the DAG may see what it found.
@app.get("/{dag_id}/{run_id}/{task_id}", dependencies=[Depends(requires_access_dag(method="GET"))])
def show_validation(dag_id: str, run_id: str, task_id: str) -> HTMLResponse:
    """The page of a task's newest validation; the copies are asked at once, because a lost region does not answer."""
    from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second
    from include.recovery.validation.kept import newest_page  # noqa: PLC0415

    here, away, asked = Surroundings(), "", []
    copies: tuple[Literal["primary", "replica"], ...] = ("primary", "replica")
    pool = ThreadPoolExecutor(len(copies), thread_name_prefix="validation page")
    for copy in copies:  # a drill keeps its pages in the copy that it reads from
        try:
            bucket = here.backups_in(copy)
        except BackupError as error:
            away = str(error)
        else:
            asked.append(pool.submit(newest_page, bucket, dag=dag_id, run=run_id, task=task_id))
    pool.shutdown(wait=False)
    for answer in as_completed(asked):
        try:
            page = answer.result()
        except BackupError as error:
            away = str(error)
            continue
        if page is not None:
            return HTMLResponse(page, headers=HEADERS)
    if away:
        raise HTTPException(503, away)
    raise HTTPException(404, "This task has validated nothing yet.")


MOUNTED = {"app": app, "url_prefix": VALIDATIONS, "name": "Validations"}
