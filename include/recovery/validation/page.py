"""A validation as a page for people: what was looked at, and what it was; no row of anybody's data (R5.2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from include.recovery.validation.validation import Validation

_TEMPLATES = Path(__file__).parent


def render(validation: Validation, about: str) -> str:
    """One page that needs no other file; `about` is what was validated. What failed comes first."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names: dict[str, list[int]] = {}
    for check in validation.checks:
        counted = names.setdefault(check.name, [0, 0])
        counted[0] += 1
        counted[1] += not check.passed
    return environment.get_template("page.html.j2").render(
        about=about,
        kind=validation.kind.replace("_", " "),
        began=f"{validation.began:%Y-%m-%d %H:%M:%S} UTC",
        seconds=round((validation.ended - validation.began).total_seconds(), 1),
        failed=validation.failed,
        checks=validation.checks,
        names=names,
    )
