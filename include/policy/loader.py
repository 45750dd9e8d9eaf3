"""Reads the policy from its YAML file, and refuses a wrong one: all that is wrong at once, each with line and mend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from include.policy.document import DocumentError, Problem, load_document
from include.policy.model import Policy

__all__ = ["DEFAULT", "ENVIRONMENT", "PolicyError", "Problem", "load_policy"]

DEFAULT = Path(__file__).with_name("backup.yaml")
ENVIRONMENT = "BACKUP_POLICY"


class PolicyError(DocumentError):
    """The policy is refused; `problems` holds every reason, `file` the file that has them."""

    called: ClassVar[str] = "policy"
    environment: ClassVar[str] = ENVIRONMENT
    default: ClassVar[Path] = DEFAULT


def load_policy(path: Path | None = None) -> Policy:
    """Load the policy from `path`, else from the file that `BACKUP_POLICY` names, else the project's own.

    Raises `PolicyError` with everything that is wrong with it: unreadable, no YAML, or not a policy.
    """
    return load_document(Policy, path or Path(os.environ.get(ENVIRONMENT) or DEFAULT), PolicyError)
