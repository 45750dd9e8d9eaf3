"""A user of the application who never stops writing: what a backup must not disturb, and must not tear."""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Self

from psycopg.types.json import Jsonb

from include.sandbox.lifelike import draw, prose
from include.sources.postgres.login import DatabaseLogin

if TYPE_CHECKING:
    import psycopg
    from mypy_boto3_s3 import S3Client
    from psycopg.rows import TupleRow

SETTINGS_EVERY = 5
UPLOAD_EVERY = 10
INVOICE_EVERY = 20
"""Of so many transactions one also does this."""


class Life:
    """One client, writing from a thread of its own while the `with` block runs; start several for more load.

    Every transaction adds a message; some change settings, bill, or upload an object and then attach it, in this order,
    so that at every moment each attachment's object exists. Leaving the block raises what the thread failed with.
    """

    def __init__(
        self, login: DatabaseLogin, objects: S3Client, bucket: str, *, seed: int = 1, pause: float = 0.002
    ) -> None:
        self.transactions = 0
        self.longest_pause = 0.0
        """Seconds between two commits: a write stop, as a user feels it."""
        self._login = login
        self._objects = objects
        self._bucket = bucket
        self._random = draw(seed, "life")
        self._pause = pause
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._live, name="synapse life", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, transactions: int, *, within: float = 30.0) -> None:
        """Return once so many transactions are committed. Raises `TimeoutError` after `within` seconds."""
        deadline = time.monotonic() + within
        while self.transactions < transactions and self._thread.is_alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.transactions} of {transactions} transactions in {within:.0f} s")
            self._thread.join(0.01)

    def _live(self) -> None:
        try:
            with self._login.connect(application_name="synapse", autocommit=True) as connection:
                chats = connection.execute("SELECT array_agg(id) FROM chats").fetchone()
                last = time.monotonic()
                while not self._over.wait(self._pause):
                    with connection.transaction():
                        self._write(connection, self._random.choice(chats[0] if chats else []))
                    now = time.monotonic()
                    self.longest_pause = max(self.longest_pause, now - last)
                    last = now
                    self.transactions += 1
        except Exception as failure:
            self._failure = failure

    def _write(self, connection: psycopg.Connection[TupleRow], chat: int) -> None:
        body = prose(self._random, self._random.randrange(40, 600)).decode()
        message = connection.execute(
            "INSERT INTO messages (chat_id, role, body, tokens) VALUES (%s, 'user', %s, %s) RETURNING id, created_at",
            (chat, body, len(body) // 4),
        ).fetchone()
        connection.execute(
            "UPDATE users SET last_seen_at = now() WHERE id = (SELECT user_id FROM chats WHERE id = %s)", (chat,)
        )
        if self._now_and_then(SETTINGS_EVERY):
            connection.execute(
                "UPDATE user_settings SET settings = settings || %s"
                " WHERE user_id = (SELECT user_id FROM chats WHERE id = %s)",
                (Jsonb({"last_chat": chat}), chat),
            )
        if self._now_and_then(INVOICE_EVERY):
            connection.execute(
                "INSERT INTO invoices (subscription_id, number, issued_on, amount, currency)"
                " SELECT id, 'SYN-' || nextval('invoice_numbers'), current_date, price, 'EUR'"
                " FROM subscriptions LIMIT 1"
            )
        if message and self._now_and_then(UPLOAD_EVERY):
            key = f"uploads/life/{secrets.token_hex(8)}.md"
            content = prose(self._random, self._random.randrange(200, 20_000))
            self._objects.put_object(Bucket=self._bucket, Key=key, Body=content, ContentType="text/markdown")
            connection.execute(
                "INSERT INTO attachments (message_id, message_created_at, storage_key, content_type, bytes)"
                " VALUES (%s, %s, %s, 'text/markdown', %s)",
                (*message, key, len(content)),
            )

    def _now_and_then(self, every: int) -> bool:
        return self._random.randrange(every) == 0
