"""The machine that makes the backup: its disk, its tools, its keyring, and the configuration's checkout on it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from include.backup.checks.check import Facts, NotReady, demand, remark
from include.pipeline.disk import existing, free_bytes
from include.pipeline.keys import Keyring, new_data_key
from include.pipeline.sealing import Sealer, open_stream
from include.policy import Policy
from include.repository.rotation import made_on
from include.sources.configuration import Configuration, git_version
from include.sources.postgres.tools import ToolsMissing, installed

GIT = (2, 28)
"""The oldest git that lays out an empty repository as the bundle needs it (`init --initial-branch`)."""


def disk(scratch: Path, policy: Policy) -> Facts:
    """Whether the disk that takes temporary files has the policy's room, and takes one (R4.1).

    A directory that is not there yet is not made: what it would be in is looked at.
    """
    place, free = existing(scratch), free_bytes(scratch)
    needed = policy.preparation.minimum_free_bytes
    if free < needed:
        raise NotReady(
            f"The disk of {scratch} has {free / 1e9:.1f} GB free, and the policy wants {needed / 1e9:.1f} GB.",
            mend="Free some, name another directory, or lower preparation.minimum_free_bytes.",
        )
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"probe")
    except OSError as error:
        raise NotReady(
            f"Nothing can be written in {place}: {error.strerror}.",
            mend="Let this user write there, or name another directory in BACKUP_SCRATCH.",
        ) from None
    return {"directory": str(scratch), "free_bytes": free, "needed_bytes": needed}


def git() -> Facts:
    """Whether git is here, and new enough."""
    version = git_version()
    demand(
        version >= GIT,
        f"git is {'.'.join(map(str, version))}, and {'.'.join(map(str, GIT))} is the oldest that will do.",
        mend="Install a newer git.",
    )
    return {"git": ".".join(map(str, version))}


def postgres_tools() -> Facts:
    """Which of PostgreSQL's tools are here; whether they fit the server is asked where the server is known."""
    found = sorted({tools.major for tools in installed()})
    if not found:
        raise ToolsMissing(
            "There are no PostgreSQL tools (pg_dump, pg_dumpall, pg_restore, psql) on this machine.",
            mend="Install the PostgreSQL client package of the server's major version, or a newer one.",
        )
    return {"postgres": ", ".join(map(str, found))}


def sealing() -> Facts:
    """Whether the compression and the encryption libraries do what they are for, on a few bytes."""
    content, key, context = secrets.token_bytes(4096), new_data_key(), {"check": "doctor"}
    sealer = Sealer(key, context, level=1)
    stored = sealer.add(content) + sealer.finish()
    demand(
        b"".join(open_stream([stored], key, context, name="The check")) == content,
        "What was compressed and encrypted does not come back as it was.",
        mend="Install requirements.txt again.",
    )
    return {"libraries": "zstd, Cobblestone-256"}


def s3cmd() -> Facts:
    """Whether the independent client that the runbooks use is here (R2.2); no backup needs it."""
    found = shutil.which("s3cmd")
    remark(
        found is None,
        "There is no s3cmd, with which the runbooks look at the buckets.",
        mend="Install it (`apt-get install s3cmd`), or leave it: no backup needs it.",
    )
    return {"s3cmd": found}


def keyring_opens(load: Callable[[], Keyring]) -> Facts:
    """Whether the keyring can be read, each current KEK wraps what it opens, and it signs what it proves (R4.2)."""
    keyring, dek = load(), new_data_key()
    demand(bool(keyring.current_keks), "The keyring wraps nothing.", mend="It is for auditing: use the full one.")
    for kek in keyring.current_keks:
        envelope = keyring.wrap(dek, owner="check", attempt="check", kek=kek)
        demand(
            keyring.unwrap(envelope, owner="check", attempt="check") == dek,
            f"The keyring does not open what it wraps with {kek}.",
            mend="Bring the keyring back from its escrow.",
        )
    document = {"check": secrets.token_hex(8)}
    keyring.check(document, keyring.sign(document))
    return {"kek": ", ".join(keyring.current_keks), "signing_key": keyring.current_signing_key}


def keyring_owner(path: Path) -> Facts:
    """Whether the keyring belongs to the user who makes the backups: only root could read another's (mode 0600)."""
    owner = path.stat().st_uid
    remark(
        owner != os.geteuid(),
        f"The keyring {path} belongs to user {owner}, and this is user {os.geteuid()}.",
        mend="Look again as the user that the backups run as, or give the file to that user.",
    )
    return {"owner": owner}


def keyring_age(load: Callable[[], Keyring], policy: Policy, *, now: datetime | None = None) -> Facts:
    """Whether every key in use is younger than the policy's rotation (R7.1); its id tells its day."""
    keyring, now = load(), now or datetime.now(UTC)
    ages = {key: made_on(key) for key in (*keyring.lasting_keks, keyring.newest_signing_key)}
    days = [made for made in ages.values() if made is not None]
    unknown = [key for key, made in ages.items() if made is None]
    remark(
        bool(unknown),
        f"The id of {', '.join(unknown)} tells no day, so nobody knows when it is due.",
        mend="Rotate it (R7.1).",
    )
    due = policy.keys.rotation.after(min(days))
    old = [key for key, made in ages.items() if made == min(days)]
    remark(
        due <= now,
        f"{' and '.join(old)} is older than {policy.keys.rotation}: its rotation was due on {due:%Y-%m-%d}.",
        mend="Run the DAG key_rotation, or `python -m include.cli keyring rotate`: the old one still opens what it "
        "wrapped.",
    )
    return {"rotation_due": f"{due:%Y-%m-%d}"}


def configuration(source: Configuration, policy: Policy) -> Facts:
    """Whether the checkout's history is whole, and the files that the policy names can be read (R2.3, R4.1)."""
    point = source.point()
    files = [file for each in policy.components_of("configuration") for file in source.files(each.files)]
    source.require_readable(files)
    return {"commit": point.commit, "refs": len(point.refs), "files": len(files)}
