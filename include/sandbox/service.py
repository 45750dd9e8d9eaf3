"""The Synapse application as a running service: HTTP over its database, its bucket and its configuration.

    python -m include.sandbox.service

It is told everything by environment variables, as any application may be:

- libpq's own (`PGHOST`, a directory for a Unix socket; `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE`, `PGSSLMODE`, …);
- AWS's (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
  `AWS_CA_BUNDLE`);
- `SYNAPSE_BUCKET`, and `SYNAPSE_PREFIX`, behind which its objects are in it;
- `SYNAPSE_CONFIGURATION`, the path of the checkout;
- `SYNAPSE_HOST` and `SYNAPSE_PORT`, where it listens; whoever starts it chooses a free port.

Its answers are JSON, but for an upload's content:

| request | answer |
|---|---|
| `GET /health` | 200 when the database, the bucket and the configuration answer; else 503 and why |
| `POST /login` | `email` and `password` for a bearer token and the user's settings |
| `GET /chats` | the user's chats |
| `GET /chats/{id}` | its messages and their attachments |
| `POST /chats/{id}/messages` | `body` becomes a message: 201, and its id |
| `PUT /messages/{id}/uploads/{name}` | the content becomes an attachment: 201, and its id |
| `GET /uploads/{id}` | an attachment's content, which must be as long as the database says |

What fails is said on standard error, without anybody's data.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import boto3
import psycopg
import uvicorn
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from psycopg.rows import DictRow, dict_row
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from include.sandbox.lifelike import MIB, hashed

log = logging.getLogger("synapse")

ENVIRONMENT_FILE, LIMITS, MODELS = "environment/production.env", "settings/limits.yaml", "settings/models.yaml"
KEYS = ("secrets/mail.key", "secrets/models.key", "secrets/payments.key")
WITHIN_SECONDS = 5
SESSION = "1 hour"
_VALUE = re.compile(r': ".*')

Connection = psycopg.Connection[DictRow]


class Refused(Exception):
    """An answer that is none: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class SynapseApplication:
    """What the endpoints do, each with a session of its own."""

    def __init__(self, *, bucket: str, prefix: str, configuration: Path) -> None:
        self._bucket, self._prefix, self._configuration = bucket, prefix, configuration
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        self._objects = boto3.client(
            "s3",
            region_name=os.environ.get("AWS_REGION"),
            endpoint_url=endpoint,
            config=Config(
                s3={"addressing_style": "path" if endpoint else "auto"},
                retries={"total_max_attempts": 2},
                connect_timeout=WITHIN_SECONDS,
                read_timeout=WITHIN_SECONDS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def health(self) -> dict[str, Any]:
        """Whether all three answer; raises `Refused`, whatever the reason."""
        try:
            with self._connect() as session:
                session.execute("SELECT 1 FROM users LIMIT 1")
            self._objects.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except (psycopg.Error, BotoCoreError, ClientError) as error:
            raise Refused(503, _words(error)) from None
        for name in (*KEYS, MODELS):
            self._read(name)
        return {"status": "ok", "environment": self._environment("SYNAPSE_ENVIRONMENT"), "limits": self._limits()}

    def login(self, email: str, password: str, *, address: str, agent: str) -> dict[str, Any]:
        """Begin a session for who knows the password: its token, which only its holder has, and the user's settings."""
        secret = self._environment("SYNAPSE_SESSION_SECRET")
        with self._connect() as session:
            user = session.execute("SELECT id, password FROM users WHERE email = %s", (email,)).fetchone()
            salt, _, known = ((user and user["password"]) or "").partition("$")
            if not (
                user
                and known
                and hmac.compare_digest(hashed(password, pepper=secret, salt=bytes.fromhex(salt)), f"{salt}${known}")
            ):
                raise Refused(401, "The e-mail address or the password is wrong.")
            token = secrets.token_urlsafe(32)
            session.execute(
                "INSERT INTO sessions (user_id, token_hash, address, user_agent, expires_at)"
                " VALUES (%s, %s, %s, %s, now() + %s::interval)",
                (user["id"], self._token_hash(token), address, agent, SESSION),
            )
            session.execute("UPDATE users SET last_seen_at = now() WHERE id = %s", (user["id"],))
            session.execute("SELECT set_config('synapse.user', %s, true)", (str(user["id"]),))  # as SET LOCAL
            settings = session.execute(
                "SELECT settings FROM user_settings WHERE user_id = current_setting('synapse.user')::bigint"
            ).fetchone()
        return {"token": token, "user": user["id"], "settings": settings["settings"] if settings else {}}

    def chats(self, token: str) -> dict[str, Any]:
        """The chats of the token's user, the oldest first."""
        with self._connect() as session:
            found = session.execute(
                "SELECT id, title, model, archived FROM chats WHERE user_id = %s ORDER BY id",
                (self._user(session, token),),
            ).fetchall()
        return {"chats": found}

    def chat(self, token: str, chat: int) -> dict[str, Any]:
        """One chat: its messages, and the attachments of all of them."""
        with self._connect() as session:
            self._own(session, token, chat)
            messages = session.execute(
                "SELECT id, role::text, body, created_at::text FROM messages WHERE chat_id = %s ORDER BY id", (chat,)
            ).fetchall()
            attachments = session.execute(
                "SELECT a.id, a.message_id, a.content_type, a.bytes FROM attachments a"
                " JOIN messages m ON m.id = a.message_id AND m.created_at = a.message_created_at"
                " WHERE m.chat_id = %s ORDER BY a.id",
                (chat,),
            ).fetchall()
        return {"id": chat, "messages": messages, "attachments": attachments}

    def write(self, token: str, chat: int, body: str) -> dict[str, Any]:
        """Add a message to a chat."""
        with self._connect() as session:
            self._own(session, token, chat)
            written = session.execute(
                "INSERT INTO messages (chat_id, role, body, tokens) VALUES (%s, 'user', %s, %s) RETURNING id",
                (chat, body, len(body) // 4),
            ).fetchone()
        return {"id": written["id"] if written else None}

    def attach(self, token: str, message: int, name: str, content: bytes, content_type: str) -> dict[str, Any]:
        """Store an upload and attach it, in this order, so that each attachment's object exists."""
        limit = self._limits()["upload_megabytes"]
        if len(content) > limit * MIB:
            raise Refused(413, f"An upload has {limit} MiB at most.")
        with self._connect() as session:
            user = self._user(session, token)
            there = session.execute(
                "SELECT m.created_at FROM messages m JOIN chats c ON c.id = m.chat_id"
                " WHERE m.id = %s AND c.user_id = %s",
                (message, user),
            ).fetchone()
            if there is None:
                raise Refused(404, f"There is no message {message}.")
            key = f"uploads/user-{user:05}/{secrets.token_hex(8)}-{name}"
            self._objects.put_object(
                Bucket=self._bucket, Key=self._prefix + key, Body=content, ContentType=content_type
            )
            attached = session.execute(
                "INSERT INTO attachments (message_id, message_created_at, storage_key, content_type, bytes)"
                " VALUES (%s, %s, %s, %s, %s) RETURNING id",
                (message, there["created_at"], key, content_type, len(content)),
            ).fetchone()
        return {"id": attached["id"] if attached else None}

    def upload(self, token: str, attachment: int) -> Response:
        """The content of an attachment, as a stream."""
        with self._connect() as session:
            found = session.execute(
                "SELECT a.storage_key, a.content_type, a.bytes FROM attachments a"
                " JOIN messages m ON m.id = a.message_id AND m.created_at = a.message_created_at"
                " JOIN chats c ON c.id = m.chat_id WHERE a.id = %s AND c.user_id = %s",
                (attachment, self._user(session, token)),
            ).fetchone()
        if found is None:
            raise Refused(404, f"There is no attachment {attachment}.")
        stored = self._objects.get_object(Bucket=self._bucket, Key=self._prefix + found["storage_key"])
        if stored["ContentLength"] != found["bytes"]:
            raise Refused(
                502, f"The object of attachment {attachment} has {stored['ContentLength']} bytes, not {found['bytes']}."
            )
        return StreamingResponse(
            stored["Body"].iter_chunks(MIB),
            media_type=found["content_type"],
            headers={"content-length": str(found["bytes"])},
        )

    def _connect(self) -> Connection:
        return psycopg.connect(
            connect_timeout=WITHIN_SECONDS,
            options=f"{os.environ.get('PGOPTIONS', '')} -c statement_timeout={WITHIN_SECONDS}s",
            row_factory=dict_row,
        )

    def _user(self, session: Connection, token: str) -> int:
        found = session.execute(
            "SELECT user_id FROM sessions WHERE token_hash = %s AND expires_at > now()", (self._token_hash(token),)
        ).fetchone()
        if found is None:
            raise Refused(401, "Nobody is logged in with this token.")
        return int(found["user_id"])

    def _own(self, session: Connection, token: str, chat: int) -> None:
        user = self._user(session, token)
        if session.execute("SELECT 1 FROM chats WHERE id = %s AND user_id = %s", (chat, user)).fetchone() is None:
            raise Refused(404, f"There is no chat {chat}.")

    def _token_hash(self, token: str) -> bytes:
        return hmac.digest(self._environment("SYNAPSE_SESSION_SECRET").encode(), token.encode(), "sha256")

    def _environment(self, name: str) -> str:
        for line in self._read(ENVIRONMENT_FILE).splitlines():
            variable, _, value = line.partition("=")
            if variable == name and value:
                return value
        raise Refused(503, f"{ENVIRONMENT_FILE} has no {name}.")

    def _limits(self) -> dict[str, int]:
        lines = (line.partition(":") for line in self._read(LIMITS).splitlines())
        return {name: int(value) for name, _, value in lines}

    def _read(self, name: str) -> str:
        try:
            return (self._configuration / name).read_text(encoding="utf-8")
        except OSError as error:
            raise Refused(503, f"The configuration's {name} cannot be read: {error.strerror}.") from None


def make_service(application: SynapseApplication) -> Starlette:
    """The endpoints over an application."""

    def json_of(request: Request, content: bytes, *names: str) -> list[str]:
        try:
            document = json.loads(content)
            return [str(document[name]) for name in names]
        except (ValueError, KeyError, TypeError):
            raise Refused(400, f"{request.url.path} wants JSON with {' and '.join(names)}.") from None

    def health(request: Request, content: bytes) -> Response:
        return JSONResponse(application.health())

    def login(request: Request, content: bytes) -> Response:
        email, password = json_of(request, content, "email", "password")
        address, agent = request.client.host if request.client else "::", request.headers.get("user-agent", "")
        return JSONResponse(application.login(email, password, address=address, agent=agent))

    def chats(request: Request, content: bytes) -> Response:
        return JSONResponse(application.chats(_bearer(request)))

    def chat(request: Request, content: bytes) -> Response:
        return JSONResponse(application.chat(_bearer(request), request.path_params["id"]))

    def write(request: Request, content: bytes) -> Response:
        (body,) = json_of(request, content, "body")
        return JSONResponse(application.write(_bearer(request), request.path_params["id"], body), 201)

    def attach(request: Request, content: bytes) -> Response:
        content_type = request.headers.get("content-type", "application/octet-stream")
        message, name = request.path_params["id"], request.path_params["name"]
        return JSONResponse(application.attach(_bearer(request), message, name, content, content_type), 201)

    def upload(request: Request, content: bytes) -> Response:
        return application.upload(_bearer(request), request.path_params["id"])

    return Starlette(
        routes=[
            Route("/health", _answered(health)),
            Route("/login", _answered(login), methods=["POST"]),
            Route("/chats", _answered(chats)),
            Route("/chats/{id:int}", _answered(chat)),
            Route("/chats/{id:int}/messages", _answered(write), methods=["POST"]),
            Route("/messages/{id:int}/uploads/{name}", _answered(attach), methods=["PUT"]),
            Route("/uploads/{id:int}", _answered(upload)),
        ]
    )


def _answered(endpoint: Callable[[Request, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Run an endpoint beside the event loop; what fails is an answer, too, and is said."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        content = await request.body()
        try:
            return await run_in_threadpool(endpoint, request, content)
        except Refused as refused:
            status, why = refused.status, refused.why
        except psycopg.Error as error:
            status, why = 500, _words(error)
        except (BotoCoreError, ClientError) as error:
            status, why = 502, _words(error)
        log.warning("%s %s: %s %s", request.method, request.url.path, status, why)
        return JSONResponse({"error": why}, status)

    return answer


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused(401, "A bearer token is needed: log in first.")
    return token


def _words(error: Exception) -> str:
    """What went wrong, in a line, without rows: the server's own first words."""
    if isinstance(error, psycopg.Error):
        said = error.diag.message_primary or str(error)
        return f"The database: {_VALUE.sub(': …', ' '.join(said.split()))}"
    return f"The bucket: {error}"


def main() -> int:
    """Serve until SIGTERM or SIGINT; what is missing in the environment ends it at once."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        application = SynapseApplication(
            bucket=os.environ["SYNAPSE_BUCKET"],
            prefix=os.environ.get("SYNAPSE_PREFIX", ""),
            configuration=Path(os.environ["SYNAPSE_CONFIGURATION"]),
        )
        host, port = os.environ["SYNAPSE_HOST"], int(os.environ["SYNAPSE_PORT"])
    except KeyError as missing:
        log.error("The environment lacks %s.", missing.args[0])
        return 1
    uvicorn.run(
        make_service(application),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
