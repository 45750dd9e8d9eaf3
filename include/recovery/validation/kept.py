"""Validations in the bucket: a page for people and a record for programs, each written once (R5.2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from include.recovery.validation.page import render
from include.recovery.validation.validation import Validation
from include.repository.layout import VALIDATIONS

if TYPE_CHECKING:
    from include.pipeline.store import Bucket

_HTML = "text/html; charset=utf-8"


def keep(bucket: Bucket, validation: Validation, *, dag: str, run: str, task: str, about: str) -> str:
    """Write both; returns the page's key. The record is written first: a page that is there has one.

    A task that is cleared validates again, and what it said before stays beside. Raises `StoreError`.
    """
    stem = f"{_place(dag, run, task)}{validation.ended:%Y%m%dT%H%M%S.%fZ}"
    record = json.dumps({"format": 1, "about": about, **validation.to_json()}, ensure_ascii=False, sort_keys=True)
    bucket.create(f"{stem}.json", record.encode())
    bucket.create(page := f"{stem}.html", render(validation, about).encode(), content_type=_HTML)
    return page


def newest_page(bucket: Bucket, *, dag: str, run: str, task: str) -> bytes | None:
    """The page of a task's newest validation; None when it has none. Nothing else of the bucket is read."""
    pages = [key for key in bucket.keys(_place(dag, run, task)) if key.endswith(".html")]
    return bucket.read(max(pages)) if pages else None


def validations(bucket: Bucket, *, dag: str, run: str) -> list[Validation]:
    """Every record of a run, in the order in which they were made."""
    keys = [key for key in bucket.keys(_place(dag, run)) if key.endswith(".json")]
    return sorted((Validation.from_json(json.loads(bucket.read(key))) for key in keys), key=lambda each: each.began)


def _place(*names: str) -> str:
    """Whatever a run is called, its name becomes one part of a key."""
    return VALIDATIONS + "".join(f"{quote(name, safe='')}/" for name in names)
