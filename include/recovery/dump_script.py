"""SQL as pg_dump and pg_dumpall write it: told apart into statements, and what each is about."""

from __future__ import annotations

import re
from collections.abc import Iterator

from include.errors import BackupError

IDENTIFIER = r"(?:\"(?:[^\"]|\"\")+\"|[^\s;\"]+)"

_ABOUT = re.compile(
    rf"(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL FOR {IDENTIFIER} ON) "
    rf"(?P<kind>ROLE|TABLESPACE) (?P<name>{IDENTIFIER})"
)
_GRANTED = re.compile(
    rf"(?:GRANT|REVOKE) (?:{IDENTIFIER}|[A-Z, ]+ ON [A-Z]+ {IDENTIFIER}) (?:TO|FROM) (?P<name>{IDENTIFIER})"
)
_GRANTED_BY = re.compile(rf"(?<=^GRANT )({IDENTIFIER} TO .*) GRANTED BY {IDENTIFIER}(?=;$)")
_BETWEEN = re.compile(r"(?:\s+|(?:--|\\)[^\n]*)*+")
_STATEMENT = re.compile(r"(?:'(?:[^']|'')*+'|\"(?:[^\"]|\"\")*+\"|[^'\";])*+;")


def statements(script: str) -> Iterator[str]:
    """The statements of a script that pg_dump or pg_dumpall wrote, without comments and psql's own commands.

    Both write a quote within quotes doubled, and comments and commands between statements only.
    """
    position = _end(_BETWEEN.match(script))
    while position < len(script):
        statement = _STATEMENT.match(script, position)
        yield script[position : _end(statement)]
        position = _end(_BETWEEN.match(script, _end(statement)))


def _end(found: re.Match[str] | None) -> int:
    if found is None:
        raise BackupError(
            "The dump of the roles or of the database ends within a statement.", mend="Use another backup."
        )
    return found.end()


def subject(statement: str) -> tuple[str, str] | None:
    """The role or tablespace that a statement makes or changes; a grant changes who gets it."""
    if about := _ABOUT.match(statement):
        return about["kind"], _unquoted(about["name"])
    granted = _GRANTED.match(statement)
    return ("ROLE", _unquoted(granted["name"])) if granted else None


def without_grantor(statement: str) -> str:
    """A grant of one role to another, without who granted it."""
    return _GRANTED_BY.sub(r"\1", statement)


def _unquoted(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier
