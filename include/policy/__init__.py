"""The ground floor: what is backed up, when, where to and for how long, as one YAML file and its typed model.

`load_policy()` is the way in; `backup.yaml` the policy that ships; `docs/requirements.md` where its numbers come from.
"""

from include.policy.loader import PolicyError, Problem, load_policy
from include.policy.model import (
    Backups,
    BackupType,
    Barrier,
    Bucket,
    Cold,
    Compliance,
    Component,
    ConfigurationSource,
    DatabaseSource,
    Keys,
    Monitoring,
    Notifications,
    ObjectSource,
    Pipeline,
    Policy,
    Preparation,
    Recovery,
    Security,
    SourceKind,
    Sources,
    Storage,
    Verification,
)
from include.policy.quantities import Period, parse_duration, parse_size

__all__ = [
    "BackupType",
    "Backups",
    "Barrier",
    "Bucket",
    "Cold",
    "Compliance",
    "Component",
    "ConfigurationSource",
    "DatabaseSource",
    "Keys",
    "Monitoring",
    "Notifications",
    "ObjectSource",
    "Period",
    "Pipeline",
    "Policy",
    "PolicyError",
    "Preparation",
    "Problem",
    "Recovery",
    "Security",
    "SourceKind",
    "Sources",
    "Storage",
    "Verification",
    "load_policy",
    "parse_duration",
    "parse_size",
]
