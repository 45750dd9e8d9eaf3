"""What a person gets where the plugin has no page for them: the way to log in, or what is the matter, in words."""

from __future__ import annotations

import html

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from include.operators.places import login_path

UNAUTHORIZED, SEE_OTHER = 401, 303
# What a page shows was named by anybody: it runs nothing, and asks for nothing.
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
HEAD = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
)


def pages(title: str) -> FastAPI:
    """An app of pages for people, which answers in words where it has none."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.exception_handler(HTTPException)(answer_person)
    return app


async def answer_person(request: Request, error: HTTPException) -> Response:
    """Whoever follows a mail's link and is not logged in logs in, and is led on; a program gets FastAPI's answer."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    if error.status_code == UNAUTHORIZED:
        return RedirectResponse(login_path(request.url.path), SEE_OTHER)
    words = html.escape(str(error.detail))
    style = "color-scheme: light dark; margin: 2rem auto; max-width: 50rem; padding: 0 1rem; font: 16px/1.55 sans-serif"
    page = f'{HEAD}<title>{error.status_code}</title></head><body style="{style}"><p>{words}</p></body></html>'
    return HTMLResponse(page, error.status_code, HEADERS)
