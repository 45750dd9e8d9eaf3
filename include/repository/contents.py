"""What the artifacts of a backup are called (`docs/format.md`, *Contents*)."""

from __future__ import annotations

INVENTORY = "database/inventory.json"
PRE_DATA = "database/pre-data.pgdump"
POST_DATA = "database/post-data.pgdump"
GLOBALS = "database/globals.sql"
SETTINGS = "database/settings.json"
SERVER_FILES = "database/server-files.json"
BASE = "database/base.tar"
BASE_FILES = "database/base.files.jsonl"
UPLOADS = "objects/uploads.json"
REPOSITORY_BUNDLE = "config/repository.bundle"
STRUCTURE = "structure"
"""The component of what belongs to no one component: schema, roles, settings, the inventory."""


def component_dump(component: str) -> str:
    """The artifact with the rows of a database component."""
    return f"database/{component}.pgdump"


def tablespace_tar(oid: int) -> str:
    """The artifact with one tablespace of a base backup."""
    return f"database/tablespace-{oid}.tar"


def object_changes(component: str) -> str:
    """The artifact with every version and deletion of a component's objects since the backup before."""
    return f"objects/{component}.changes.jsonl"


def object_index(component: str) -> str:
    """The artifact that lists a component's objects."""
    return f"objects/{component}.index.jsonl"


def configuration_files(component: str) -> str:
    """The artifact with a component's files beside the repository."""
    return f"config/{component}.tar"
