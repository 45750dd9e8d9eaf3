"""What is looked at before a backup begins (R4.1, R4.2): each check raises with its mend, and returns what it found."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from include.backup.application import Application
from include.errors import BackupError
from include.pipeline.keys import new_data_key
from include.policy import Policy
from include.repository.catalog import Catalog
from include.sources.objects import require_versions, versioning_command
from include.sources.postgres.relations import list_relations
from include.sources.postgres.server import identify
from include.sources.postgres.tools import find_tools

Facts = dict[str, Any]


class NotReady(BackupError):
    """Something that a backup needs is not as it must be."""


def check_disk(scratch: Path, policy: Policy) -> Facts:
    """Whether the disk that takes temporary files has the policy's room (R4.1)."""
    scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(scratch).free
    needed = policy.preparation.minimum_free_bytes
    if free < needed:
        raise NotReady(
            f"The disk of {scratch} has {free / 1e9:.1f} GB free, and the policy wants {needed / 1e9:.1f} GB.",
            mend="Free some, name another directory, or lower preparation.minimum_free_bytes.",
        )
    return {"free_bytes": free, "needed_bytes": needed}


def check_permissions(application: Application, catalog: Catalog) -> Facts:
    """Whether the sources can be read, and the bucket written, read and listed (R4.1).

    The probe is one small object under `state/`, deleted again.
    """
    with application.dump.connect(application_name="synapse-backups", autocommit=True) as session:
        tables = len(list_relations(session).tables)
    first = next(application.objects.keys(""), None)
    point = application.configuration.point()
    probe = f"state/probe-{secrets.token_hex(8)}"
    content = secrets.token_bytes(64)
    catalog.bucket.create(probe, content)
    try:
        _must(catalog.bucket.read(probe) == content, f"{catalog.bucket}/{probe} does not read back as it was written.")
        _must(probe in catalog.bucket.keys("state/probe-"), f"{catalog.bucket} does not list what was just written.")
    finally:
        catalog.bucket.delete(probe)
    return {"tables": tables, "objects": first is not None, "commit": point.commit, "bucket": catalog.bucket.name}


def make_scratch(root: Path, name: str) -> Path:
    """The run's temporary directory, for its owner alone (R4.1); one that is there already is taken over."""
    scratch = root / name
    root.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(mode=0o700, exist_ok=True)
    scratch.chmod(0o700)
    return scratch


def remove_scratch(root: Path, name: str) -> None:
    """Remove the run's temporary directory; one that is gone already is fine."""
    scratch = root / name
    if scratch.exists():
        shutil.rmtree(scratch)


def check_database(application: Application) -> Facts:
    """Whether both logins reach the same primary, and its tools are here (R4.2)."""
    with application.dump.connect(application_name="synapse-backups", autocommit=True) as session:
        server = identify(session)
        relations = list_relations(session)
    with application.barrier.connect(application_name="synapse-backups", autocommit=True) as session:
        _must(
            identify(session) == server,
            "The barrier and the dump login reach different databases.",
            mend="Point both connections at the same database of the same server.",
        )
    tools = find_tools(server.major)
    return {
        "server": server.version_text,
        "system": server.system_identifier,
        "tables": len(relations.tables),
        "tools": tools.major,
    }


def check_stores(application: Application, catalog: Catalog, policy: Policy) -> Facts:
    """Whether both buckets answer, and keep versions (R4.2, R3.1)."""
    require_versions(application.objects)
    _must(
        catalog.bucket.is_versioned(),
        f"{catalog.bucket} keeps no versions (R3.1).",
        mend=versioning_command(catalog.bucket),
    )
    return {
        "objects": application.objects.name,
        "backups": catalog.bucket.name,
        "clock": catalog.bucket.clock().isoformat(),
        "region": policy.storage.primary.region,
    }


def check_keys(catalog: Catalog) -> Facts:
    """Whether the keyring wraps what it opens and signs what it proves (R4.2)."""
    keyring, dek = catalog.keyring, new_data_key()
    envelope = keyring.wrap(dek, owner="check", attempt="check")
    _must(keyring.unwrap(envelope, owner="check", attempt="check") == dek, "The keyring does not open what it wraps.")
    document = {"check": secrets.token_hex(8)}
    keyring.check(document, keyring.sign(document))
    return {"kek": keyring.current_kek, "signing_key": keyring.current_signing_key}


def _must(
    holds: bool, what: str, *, mend: str = "Look at the store itself: a backup there could not be trusted."
) -> None:
    if not holds:
        raise NotReady(what, mend=mend)
