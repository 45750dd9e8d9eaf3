"""What the artifacts of a full backup are called (`docs/format.md`, *Contents*)."""

from __future__ import annotations

INVENTORY = "database/inventory.json"
PRE_DATA = "database/pre-data.pgdump"
POST_DATA = "database/post-data.pgdump"
GLOBALS = "database/globals.sql"
SETTINGS = "database/settings.json"
REPOSITORY_BUNDLE = "config/repository.bundle"
STRUCTURE = "structure"
"""The component of what belongs to no one component: schema, roles, settings, the inventory."""


def component_dump(component: str) -> str:
    """The artifact with the rows of a database component."""
    return f"database/{component}.pgdump"


def object_index(component: str) -> str:
    """The artifact that lists a component's objects."""
    return f"objects/{component}.index.jsonl"


def configuration_files(component: str) -> str:
    """The artifact with a component's files beside the repository."""
    return f"config/{component}.tar"
