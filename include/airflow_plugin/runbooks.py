"""Runbooks, one click from a red task: docs/runbooks/ as pages of Airflow's, and the link to them on every task.

A DAG has a runbook when docs/runbooks/ has a file of its name; a heading that is a task's id is where the link leads.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

import markdown
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.sdk import BaseOperatorLink
from fastapi import Depends, HTTPException
from fastapi.responses import HTMLResponse

from include.airflow_plugin.answers import HEAD, HEADERS, pages
from include.operators.places import RUNBOOKS, runbook_path, runbook_url

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

DIRECTORY = Path(__file__).parents[2] / "docs" / "runbooks"
STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --text: #1b1f24; --link: #0a58ca; --code: #f3f4f6; --line: #d0d7de; --here: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e4e7eb; --link: #8ab4ff; --code: #23272e; --line: #3a414b; --here: #4a3d0c; }
}
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: break-word; }
a { color: var(--link); } h2, h3 { margin-top: 2.2rem; } :target { background: var(--here); }
code, pre { font: 14px/1.45 monospace; background: var(--code); } pre { padding: .8rem; overflow-x: auto; }
table { border-collapse: collapse; } th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
td { overflow-wrap: anywhere; }
"""
_LINK = re.compile(r'(?P<begin>href="[a-z_]+)\.md(?P<end>["#])')
app = pages("Runbooks of the backups")


class RunbookLink(BaseOperatorLink):
    """The button *Runbook* on a task: what to do when it is red.

    It is made when it is asked for, so that a task that was killed, or never ran, has it too.
    """

    @property
    def name(self) -> str:
        """What the button says."""
        return "Runbook"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page, at the task; empty for a DAG without a runbook."""
        if find_runbook(ti_key.dag_id) is None:
            return ""
        task = (ti_key.dag_id, ti_key.task_id)
        return runbook_url(*task) or runbook_path(*task)


def find_runbook(dag_id: str) -> Path | None:
    """The file that is the DAG's runbook; nothing that is asked for becomes part of a path."""
    return {file.stem: file for file in DIRECTORY.glob("*.md")}.get(dag_id)


# A plugin's routes are open to everybody unless they ask: whoever may see the DAG may read its runbook.
@app.get("/{dag_id}", dependencies=[Depends(requires_access_dag(method="GET"))])
def show_runbook(dag_id: str) -> HTMLResponse:
    """The runbook of a DAG, as a page."""
    file = find_runbook(dag_id)
    if file is None:
        raise HTTPException(404, f"There is no docs/runbooks/{dag_id}.md.")
    return HTMLResponse(render(dag_id, file.read_text(encoding="utf-8")), headers=HEADERS)


def render(title: str, text: str) -> str:
    """A runbook as HTML; a heading's anchor is its text, and links to other runbooks lead to their pages."""
    converter = markdown.Markdown(
        extensions=["fenced_code", "tables", "toc"],
        extension_configs={"toc": {"slugify": lambda value, separator: value.strip().replace(" ", separator)}},
    )
    body = _LINK.sub(r"\g<begin>\g<end>", converter.convert(text))
    return f"{HEAD}<title>{html.escape(title)}: runbook</title><style>{STYLE}</style></head><body>{body}</body></html>"


MOUNTED = {"app": app, "url_prefix": RUNBOOKS, "name": "Runbooks"}
