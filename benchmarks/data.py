"""Two databases to measure on: Synapse's own tables, grown to a gigabyte, alike but for how well they compress."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from psycopg import sql

from include.sandbox.lifelike import DAYS, FIRST_DAY, WORDS, draw
from include.sources.postgres.login import DatabaseLogin

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

WORDS_SHARE = {"compressible": 1.0, "half-compressible": 0.5}
"""The share of each text that is words; the rest is random, in base64."""
BLOB_BYTES = 48_000_000
"""Texts are cut from so much of each kind: far more than a compressor's window, so that few are seen twice in one."""
TEXT_BYTES = 800
USER_BYTES = 1_500
"""About what a user's rows take, sessions included."""
SESSIONS = 5
LINES_AT_ONCE = 2_000
FIRST_ID = 10_000_000
"""Ids of grown rows begin here, above every one of the small Synapse."""

Text = Callable[[Random, int], str]


def grow(database: DatabaseLogin, data_set: str, *, raw_bytes: int) -> int:
    """Add about `raw_bytes` of rows, as COPY writes them, to a small Synapse; returns how many there were.

    Four fifths are messages, in seven partitions; a tenth is users, their settings and sessions; a tenth notes that no
    component names. The same for the same data set and size.
    """
    text = _texts(data_set)
    users = raw_bytes // 10 // USER_BYTES
    notes, messages = raw_bytes // 10 // TEXT_BYTES, raw_bytes * 8 // 10 // TEXT_BYTES
    with database.connect(application_name="benchmarks") as session:
        row = session.execute("SELECT array_agg(id) FROM chats").fetchone()
        chats: list[int] = row[0] if row else []
        written = (
            _copy(session, "users", ("id", "email", "display_name"), _users(users))
            + _copy(session, "user_settings", ("user_id", "settings"), _settings(users, text))
            + _copy(
                session, "sessions", ("user_id", "token_hash", "address", "user_agent", "expires_at"), _sessions(users)
            )
            + _copy(session, "audit_notes", ("author", "note"), _notes(notes, text))
            + _copy(
                session,
                "messages",
                ("id", "chat_id", "role", "body", "tokens", "created_at"),
                _messages(messages, chats, text),
            )
        )
    with database.connect(application_name="benchmarks", autocommit=True) as session:
        session.execute("REFRESH MATERIALIZED VIEW monthly_usage")
        session.execute("VACUUM ANALYZE")
    return written


def _texts(data_set: str) -> Text:
    rng = draw("benchmarks", data_set, "texts")
    words = " ".join(rng.choices(WORDS, k=BLOB_BYTES // 6))
    noise = base64.b64encode(rng.randbytes(BLOB_BYTES * 3 // 4)).decode()
    share = WORDS_SHARE[data_set]

    def text(rng: Random, size: int) -> str:
        plain = int(size * share)
        some, other = rng.randrange(len(words) - size), rng.randrange(len(noise) - size)
        return words[some : some + plain] + noise[other : other + size - plain]

    return text


def _copy(session: psycopg.Connection[TupleRow], table: str, columns: tuple[str, ...], lines: Iterator[str]) -> int:
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    written = 0
    with session.cursor() as cursor, cursor.copy(into) as copy:
        while block := "".join(islice(lines, LINES_AT_ONCE)).encode():
            copy.write(block)
            written += len(block)
    return written


def _users(users: int) -> Iterator[str]:
    for user in range(FIRST_ID, FIRST_ID + users):
        yield f"{user}\tuser{user}@synapse.example\tUser {user}\n"


def _settings(users: int, text: Text) -> Iterator[str]:
    rng = draw("benchmarks", "settings")
    for user in range(FIRST_ID, FIRST_ID + users):
        yield f'{user}\t{{"theme": "dark", "pinned": [{rng.randrange(9999)}], "about": "{text(rng, 300)}"}}\n'


def _sessions(users: int) -> Iterator[str]:
    rng = draw("benchmarks", "sessions")
    for user in range(FIRST_ID, FIRST_ID + users):
        for number in range(SESSIONS):
            token, address = rng.randbytes(32).hex(), f"10.{rng.randrange(256)}.{rng.randrange(256)}.{number}"
            yield f"{user}\t\\\\x{token}\t{address}\tMozilla/5.0 (X11; Linux x86_64)\t2099-01-01Z\n"


def _notes(notes: int, text: Text) -> Iterator[str]:
    rng = draw("benchmarks", "notes")
    for _ in range(notes):
        yield f"Ada\t{text(rng, TEXT_BYTES)}\n"


def _messages(messages: int, chats: list[int], text: Text) -> Iterator[str]:
    rng = draw("benchmarks", "messages")
    apart = timedelta(days=DAYS - 1) / messages
    for number in range(messages):
        size, moment = rng.randrange(TEXT_BYTES // 4, TEXT_BYTES * 7 // 4), FIRST_DAY + apart * number
        yield f"{FIRST_ID + number}\t{rng.choice(chats)}\tuser\t{text(rng, size)}\t{size // 4}\t{moment.isoformat()}\n"
