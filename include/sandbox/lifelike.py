"""Lifelike data for the Synapse application: the same rows, objects and files for the same seed, on every Python."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

KIB = 1024
MIB = 1024 * KIB
FIRST_DAY = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = 174
"""The application's life so far; a few messages are older and fall into the default partition."""
PROBE = "probe@synapse.example"
"""The first user, and the only one with a password: for whoever asks whether the application still works.

The first chat, message and attachment are this user's; the password is `secrets/probe.key` of the configuration."""
LARGE_OBJECT_BASE = 910_000
"""Large objects get numbers of our choosing, because rows name them."""

Row = tuple[Any, ...]

WORDS = """
a about after again agenda all an and answer as ask at attach because before begin better between build by calendar
call change chart check clear code come compare could customer data day deadline draft each easy email error every
example explain export faster field file find first fix follow for from garden get give good help here holiday how
idea image import in invoice is it journey keep key last later learn letter list little long look make many maybe
meeting more move my name need new next night nothing now number of offer often on one only open or order other our
out over page part people picture plan please point price project quarter question quick read recipe release report
result review right river room run same schedule score search second see send sentence share short show simple slow
some start story summary table team test than that the their then there think this time title to together tomorrow
translate travel try two under update use version very wait want was water way week well what when where which while
who why window with word work would write year you your
""".split()  # noqa: SIM905 - a list would be a page
_NAMES = ("Ada", "Björn", "Chloé", "Dmitri", "Elif", "Fatima", "Grete", "Hiro", "İpek", "João")
_LOCALES = ("en", "de", "fr", "ja", "pt", "tr")
SCHEMA_VERSION = 7
_MODELS = ("synapse-small", "synapse-large", "synapse-vision")
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)",
    "Mozilla/5.0 (Macintosh)",
    "SynapseApp/4.2 (iOS)",
    "SynapseApp/4.2 (Android)",
)
_PLANS = (("free", "0.00"), ("team", "24.00"), ("enterprise", "190.00"))


def draw(*parts: object) -> Random:
    """A generator of its own for one purpose, so that what is drawn for one never moves another."""
    return Random("/".join(map(str, parts)))  # noqa: S311 - sample data, not secrets


@dataclass(frozen=True)
class StoredObject:
    """One key of the application's bucket and its history; the body is made when it is needed."""

    key: str
    content_type: str
    size: int
    """About how many bytes its newest version has."""
    seed: str
    metadata: dict[str, str] = field(default_factory=dict)
    drafts: int = 0
    """How many versions came before."""
    deleted: bool = False

    def body(self, version: int) -> bytes:
        """The bytes of one version, 0 being the first."""
        rng = draw(self.seed, self.key, version)
        match self.content_type:
            case "text/markdown":
                return prose(rng, self.size)
            case "application/json":
                return _records(rng, self.size)
            case "image/png":
                return (b"\x89PNG\r\n\x1a\n" + rng.randbytes(self.size))[: self.size]
            case "image/jpeg":
                return (b"\xff\xd8\xff\xe0" + rng.randbytes(self.size))[: self.size]
            case _:
                return rng.randbytes(self.size)


class Lifelike:
    """All of one application, `scale` 1 being a good 200,000 rows and 560 objects of 80 MB."""

    def __init__(self, seed: int, scale: float) -> None:
        self.seed = seed
        self.scale = scale
        self.users = self._count(5_000)
        self.chats = self._count(15_000)
        self.messages = self._count(150_000)
        self.subscriptions = self._count(2_000)
        self._sentences = [_sentence(rng) for rng in [draw(seed, "sentences")] for _ in range(2_000)]

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], Iterator[Row]]]:
        """Every table but `attachments`, parents first: its name, its columns, its rows."""
        yield (
            "users",
            ("id", "email", "display_name", "locale", "avatar", "created_at", "last_seen_at", "password"),
            self._users(),
        )
        yield "user_settings", ("user_id", "settings", "updated_at"), self._user_settings()
        yield (
            "sessions",
            ("id", "user_id", "token_hash", "address", "user_agent", "created_at", "expires_at"),
            self._sessions(),
        )
        yield "chats", ("id", "user_id", "title", "model", "archived", "created_at"), self._chats()
        yield "messages", ("id", "chat_id", "role", "body", "tokens", "created_at"), self._messages()
        yield "system_settings", ("key", "value", "description", "updated_at"), self._system_settings()
        yield "feature_flags", ("name", "enabled", "share", "locales"), self._feature_flags()
        yield (
            "subscriptions",
            ("id", "user_id", "plan", "price", "started_on", "cancelled_on"),
            self._subscriptions(),
        )
        yield (
            "invoices",
            ("id", "subscription_id", "number", "issued_on", "amount", "currency", "paid_at"),
            self._invoices(),
        )
        yield "audit_notes", ("id", "author", "note", "at"), self._audit_notes()

    def large_objects(self) -> Iterator[tuple[int, bytes]]:
        """The old avatars: number and bytes, the first of them empty."""
        for index, size in enumerate((0, 3_000, 120_000, 1 * MIB)):
            yield LARGE_OBJECT_BASE + index, draw(self.seed, "avatar", index).randbytes(size)

    def objects(self) -> list[StoredObject]:
        """Every key ever written to the bucket, and what became of it."""
        rng = draw(self.seed, "objects")
        count = self._count
        documents = [
            self._object(rng, f"uploads/{self._owner(rng)}/{name}", content_type, size)
            for name, content_type, size in (
                *((f"notes {i}.md", "text/markdown", rng.randrange(200, 20 * KIB)) for i in range(count(90))),
                *((f"photo-{i}.jpeg", "image/jpeg", rng.randrange(20 * KIB, 400 * KIB)) for i in range(count(90))),
                *((f"data-{i}.json", "application/json", rng.randrange(500, 60 * KIB)) for i in range(count(60))),
                ("résumé — Łódź.md", "text/markdown", 4_000),
                ("日本語 メモ.md", "text/markdown", 2_500),
                ("100% & more+plus #1?.md", "text/markdown", 1_200),
                ("empty.md", "text/markdown", 0),
                ("backup of everything.bin", "application/octet-stream", 8 * MIB),
            )
        ]
        generated = [
            self._object(rng, f"generated/2026/{rng.randrange(6, 12):02}/{name}", content_type, size)
            for name, content_type, size in (
                *((f"report-{i}.md", "text/markdown", rng.randrange(2 * KIB, 80 * KIB)) for i in range(count(100))),
                *((f"extract-{i}.json", "application/json", rng.randrange(KIB, 120 * KIB)) for i in range(count(60))),
                ("empty.json", "application/json", 0),
            )
        ]
        media = [
            self._object(rng, f"media/{name}", content_type, size)
            for name, content_type, size in (
                *((f"icons/{i}.png", "image/png", rng.randrange(300, 6 * KIB)) for i in range(count(120))),
                *((f"covers/{i}.jpeg", "image/jpeg", rng.randrange(40 * KIB, 300 * KIB)) for i in range(count(20))),
                *((f"clips/{i}.mp4", "video/mp4", rng.randrange(1 * MIB, 3 * MIB)) for i in range(count(16))),
                ("clips/the long one.mp4", "video/mp4", 8 * MIB),
                ("icons/none.png", "image/png", 0),
            )
        ]
        deleted = [
            self._object(rng, f"uploads/{self._owner(rng)}/regretted {i}.md", "text/markdown", 3_000, deleted=True)
            for i in range(count(10))
        ]
        return documents + generated + media + deleted

    def attachments(self, sizes: dict[str, int]) -> Iterator[Row]:
        """One attachment for every object that a message names: all that live under uploads/ and generated/."""
        rng = draw(self.seed, "attachments")
        named = [each for each in self.objects() if not (each.deleted or each.key.startswith("media/"))]
        moments = dict(self._message_moments())
        for index, each in enumerate(named, start=1):
            message = _first(index, rng.randrange(1, self.messages + 1))
            yield index, message, moments[message], each.key, each.content_type, sizes[each.key]

    def files(self) -> dict[str, str]:
        """The configuration's untracked files, path to content: environment variables and API keys."""
        rng = draw(self.seed, "secrets")
        environments = {
            f"environment/{name}.env": f"SYNAPSE_ENVIRONMENT={name}\nSYNAPSE_LOG_LEVEL={level}\n"
            f"SYNAPSE_SESSION_SECRET={rng.randbytes(24).hex()}\nSYNAPSE_REGION=eu-west-1\n"
            for name, level in (("production", "warning"), ("staging", "debug"))
        }
        keys = {
            f"secrets/{name}.key": f"sk-{rng.randbytes(32).hex()}\n" for name in ("mail", "models", "payments", "probe")
        }
        return environments | keys

    def commits(self) -> Iterator[tuple[datetime, str, dict[str, str]]]:
        """The configuration's history: when, the message, the files it writes."""
        rng = draw(self.seed, "configuration")
        ignored = "environment/*.env\nsecrets/*.key\n"
        readme = "# Synapse configuration\n\nSettings are tracked; environment files and keys are not.\n"
        yield FIRST_DAY, "Begin the configuration", {".gitignore": ignored, "README.md": readme}
        for index, message in enumerate(
            ("Set the limits", "Offer the vision model", "Raise the upload limit"), start=1
        ):
            schema = f"{SCHEMA_VERSION - 3 + index}\n"
            limits = f"upload_megabytes: {8 * index}\nchats_per_user: {rng.randrange(100, 900)}\n"
            models = "models:\n" + "".join(f"  - {model}\n" for model in _MODELS[:index])
            yield (
                FIRST_DAY + timedelta(days=30 * index),
                message,
                {"settings/limits.yaml": limits, "settings/models.yaml": models, "settings/schema_version": schema},
            )

    def _count(self, full: int) -> int:
        return max(2, round(full * self.scale))

    def _owner(self, rng: Random) -> str:
        return f"user-{rng.randrange(1, self.users + 1):05}"

    def _object(self, rng: Random, key: str, content_type: str, size: int, *, deleted: bool = False) -> StoredObject:
        metadata = {"origin": rng.choice(("web", "phone", "import")), "trace": f"{rng.getrandbits(64):016x}"}
        drafts = 1 if size < MIB and _happens(rng, 0.03) else 0
        return StoredObject(key, content_type, size, f"{self.seed}/body", metadata, drafts, deleted)

    def _moment(self, rng: Random) -> datetime:
        return FIRST_DAY + timedelta(milliseconds=rng.randrange(DAYS * 86_400_000))

    def _users(self) -> Iterator[Row]:
        rng = draw(self.seed, "users")
        avatars = {index + 1: number for index, (number, _) in enumerate(self.large_objects())}
        files, salt = self.files(), draw(self.seed, "salt").randbytes(16)
        secret = files["environment/production.env"].partition("SYNAPSE_SESSION_SECRET=")[2].split("\n")[0]
        password = hashed(files["secrets/probe.key"].strip(), pepper=secret, salt=salt)
        for user in range(1, self.users + 1):
            name = f"{rng.choice(_NAMES)} {rng.choice(WORDS).title()}"
            seen = self._moment(rng) if _happens(rng, 0.9) else None
            created = self._moment(rng)
            email, hashed_one = (PROBE, password) if user == 1 else (f"user{user}@synapse.example", None)
            yield user, email, name, rng.choice(_LOCALES), avatars.get(user), created, seen, hashed_one

    def _user_settings(self) -> Iterator[Row]:
        rng = draw(self.seed, "user_settings")
        for user in range(1, self.users + 1):
            settings = {
                "theme": rng.choice(("light", "dark", "system")),
                "model": rng.choice(_MODELS),
                "notify": {"mail": _happens(rng, 0.5), "push": _happens(rng, 0.5)},
                "pinned": rng.sample(range(1, self.chats + 1), k=rng.randrange(3)),
            }
            yield user, json.dumps(settings), self._moment(rng)

    def _sessions(self) -> Iterator[Row]:
        rng = draw(self.seed, "sessions")
        for session in range(1, self._count(20_000) + 1):
            began = self._moment(rng)
            address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
            user = rng.randrange(1, self.users + 1)
            yield session, user, rng.randbytes(32), address, rng.choice(_AGENTS), began, began + timedelta(days=30)

    def _chats(self) -> Iterator[Row]:
        rng = draw(self.seed, "chats")
        for chat in range(1, self.chats + 1):
            title = " ".join(rng.choices(WORDS, k=rng.randrange(2, 7))).capitalize()
            archived = _happens(rng, 0.2)
            owner = _first(chat, rng.randrange(1, self.users + 1))
            yield chat, owner, title, rng.choice(_MODELS), archived, self._moment(rng)

    def _message_moments(self) -> Iterator[tuple[int, datetime]]:
        rng = draw(self.seed, "moments")
        for message in range(1, self.messages + 1):
            late = self._moment(rng)
            yield message, late - timedelta(days=200) if _happens(rng, 0.01) else late

    def _messages(self) -> Iterator[Row]:
        rng = draw(self.seed, "messages")
        roles, weights = ("user", "assistant", "tool", "system"), (45, 48, 5, 2)
        for message, moment in self._message_moments():
            body = " ".join(rng.choices(self._sentences, k=rng.randrange(1, 6)))
            chat = _first(message, rng.randrange(1, self.chats + 1))
            yield message, chat, rng.choices(roles, weights)[0], body, len(body) // 4, moment

    def _system_settings(self) -> Iterator[Row]:
        rng = draw(self.seed, "system_settings")
        for index in range(1, self._count(60) + 1):
            value = json.dumps({"value": rng.randrange(1_000), "unit": rng.choice(("seconds", "bytes", "items"))})
            yield f"{rng.choice(WORDS)}.{rng.choice(WORDS)}.{index}", value, _sentence(rng), self._moment(rng)
        yield "schema.version", json.dumps(SCHEMA_VERSION), "The schema that the application runs on.", FIRST_DAY

    def _feature_flags(self) -> Iterator[Row]:
        rng = draw(self.seed, "feature_flags")
        for index in range(1, self._count(40) + 1):
            share = f"{rng.random():.4f}"
            yield f"{rng.choice(WORDS)}-{index}", _happens(rng, 0.5), share, rng.sample(_LOCALES, k=2)

    def _subscriptions(self) -> Iterator[Row]:
        rng = draw(self.seed, "subscriptions")
        for subscription in range(1, self.subscriptions + 1):
            plan, price = rng.choice(_PLANS)
            began = self._moment(rng).date()
            ended = began + timedelta(days=rng.randrange(300)) if _happens(rng, 0.25) else None
            yield subscription, rng.randrange(1, self.users + 1), plan, price, began, ended

    def _invoices(self) -> Iterator[Row]:
        rng = draw(self.seed, "invoices")
        for invoice in range(1, self._count(12_000) + 1):
            issued = self._moment(rng)
            amount = rng.choice(_PLANS)[1]
            paid = issued + timedelta(hours=rng.randrange(900)) if _happens(rng, 0.95) else None
            subscription = rng.randrange(1, self.subscriptions + 1)
            yield invoice, subscription, f"SYN-{99_999 + invoice}", issued.date(), amount, "EUR", paid

    def _audit_notes(self) -> Iterator[Row]:
        rng = draw(self.seed, "audit_notes")
        for note in range(1, self._count(500) + 1):
            # Tabs, line breaks and backslashes: what a text format must escape.
            text = f"{_sentence(rng)}\n\t\\N {_sentence(rng)}"
            yield note, rng.choice(_NAMES), text, self._moment(rng)


def hashed(password: str, *, pepper: str, salt: bytes) -> str:
    """A password as the application keeps it: `salt$hash` in hexadecimal."""
    peppered = hmac.digest(pepper.encode(), password.encode(), "sha256")
    return f"{salt.hex()}${hashlib.scrypt(peppered, salt=salt, n=2**13, r=8, p=1).hex()}"


def prose(rng: Random, size: int) -> bytes:
    """Markdown of exactly `size` bytes."""
    sentences = [_sentence(rng) for _ in range(40)]
    text = "# " + rng.choice(sentences) + "\n\n"
    while len(text) < size:
        text += " ".join(rng.choices(sentences, k=60)) + "\n\n"
    return text.encode()[:size]


def _records(rng: Random, size: int) -> bytes:
    if not size:
        return b""
    records = []
    while size > 0:
        record = {"id": rng.getrandbits(40), "label": " ".join(rng.choices(WORDS, k=4)), "score": rng.random()}
        records.append(record)
        size -= 80
    return json.dumps(records, indent=1).encode()


def _first(number: int, drawn: int) -> int:
    """The first belongs to the first, everything else to what was drawn for it."""
    return 1 if number == 1 else drawn


def _happens(rng: Random, share: float) -> bool:
    return rng.random() < share


def _sentence(rng: Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(5, 14))).capitalize() + "."
