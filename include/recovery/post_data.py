"""Indexes, constraints and triggers: which of them may be made side by side, and which one after another.

`pg_restore --jobs` keeps two steps apart that would lock the same tables, but it knows the tables only in a dump that
holds them (`identify_locking_dependencies` in PostgreSQL's `pg_backup_archiver.c`), and a backup has them in a dump of
their own. Two foreign keys that run the other way round are then a deadlock, and a restore that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_ENTRY = re.compile(r"^(?P<id>\d+); \d+ \d+ (?P<rest>.*)$", re.ASCII)
_NEEDS = ";\tdepends on:"
# What attaches an index is no object of its own: `0 0 INDEX ATTACH`.
_AN_INDEX = re.compile(r"^\d+; 1259 \d+ INDEX ", re.ASCII)
_CONSTRAINT = "CONSTRAINT "
_REFRESH = "MATERIALIZED VIEW DATA "
_EVENT_TRIGGER = re.compile(r"(?:(?:COMMENT|SECURITY LABEL) \S+ )?EVENT TRIGGER ")
_INDEX = re.compile(r"CREATE (?:UNIQUE )?INDEX ")
_TABLE = re.compile(r"ALTER TABLE ")


@dataclass(frozen=True)
class Turns:
    """Lines of a table of contents, in the order in which they are restored.

    `side_by_side` are steps that lock one table each, and need nothing but each other. `one_by_one` is the rest, but
    for `refreshed`: materialized views, filled side by side when all that they may show is there. `awake` are event
    triggers: one that is there would see the others made.
    """

    side_by_side: list[str]
    one_by_one: list[str]
    refreshed: list[str]
    awake: list[str]


def in_turn(listed: Sequence[str], *, apart: Iterable[str] = ()) -> Turns:
    """Sort what `pg_restore --list --verbose` says of post-data; `apart` are lines that must not run side by side."""
    turns, kept_apart, singly = Turns([], [], [], []), set(apart), set[str]()
    for line, rest, needed in _entries(listed):
        if _EVENT_TRIGGER.match(rest):
            turns.awake.append(line)
        elif rest.startswith(_REFRESH):
            turns.refreshed.append(line)
        elif (
            (_AN_INDEX.match(line) or rest.startswith(_CONSTRAINT))
            and line not in kept_apart
            and singly.isdisjoint(needed)
        ):
            turns.side_by_side.append(line)
        else:
            turns.one_by_one.append(line)
            singly.add(line.partition(";")[0])
    return turns


def indexes_of(listed: Iterable[str]) -> list[str]:
    """The lines of a table of contents that make an index."""
    return [line for line in listed if _AN_INDEX.match(line)]


def upgrading(indexes: Sequence[str], statements: Iterable[str]) -> list[str]:
    """Those of the lines of indexes whose statements go on to change the table (`CLUSTER ON`, `REPLICA IDENTITY`).

    Such a step holds a lock that lets others make indexes of that table, and then wants one that does not: two of one
    table are a deadlock. `statements` are those of all the lines, in their order.
    """
    changes: list[bool] = []
    for statement in statements:
        if _INDEX.match(statement):
            changes.append(False)
        elif changes and _TABLE.match(statement):
            changes[-1] = True
    return [line for line, changed in zip(indexes, changes, strict=True) if changed]


def _entries(listed: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Each line that is an entry, what it is, and the numbers of the entries that it needs."""
    for line, following in zip(listed, [*listed[1:], ""], strict=True):
        if entry := _ENTRY.match(line):
            yield line, entry["rest"], following[len(_NEEDS) :].split() if following.startswith(_NEEDS) else []
