"""`airflow_settings.yaml`, read without Airflow: its connections, variables and pools (the astro format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from include.errors import BackupError

PLACEHOLDER = "CHANGE-ME"
CONNECTION_FIELDS = {
    "conn_type": "conn_type",
    "conn_host": "host",
    "conn_schema": "schema",
    "conn_login": "login",
    "conn_password": "password",
    "conn_port": "port",
    "conn_extra": "extra",
}
"""astro's names, and those of `airflow connections import`."""


class SettingsRefused(BackupError):
    """A settings file that cannot be loaded as it is."""


@dataclass(frozen=True)
class Settings:
    """What the file says: connections, variables and pools by name, as `airflow … import` takes them."""

    connections: Mapping[str, Mapping[str, Any]] = field(repr=False)
    variables: Mapping[str, str] = field(repr=False)
    pools: Mapping[str, Mapping[str, Any]]


def read_settings(file: Path) -> Settings:
    """Read a file of the astro format. Raises `SettingsRefused`, also for a placeholder that is left."""
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        airflow = document["airflow"]
        connections = {
            each["conn_id"]: {ours: each[astro] for astro, ours in CONNECTION_FIELDS.items() if each.get(astro)}
            for each in airflow.get("connections") or ()
        }
        variables = {each["variable_name"]: str(each["variable_value"]) for each in airflow.get("variables") or ()}
        pools = {
            each["pool_name"]: {
                "slots": each["pool_slot"],
                "description": each.get("pool_description") or "",
                "include_deferred": False,
            }
            for each in airflow.get("pools") or ()
        }
    except (OSError, YAMLError) as error:
        raise SettingsRefused(
            f"{file} cannot be read: {error}.", mend="Name a YAML file of the astro format."
        ) from None
    except (TypeError, KeyError, AttributeError) as error:
        raise SettingsRefused(
            f"{file} is not of the astro format: {error}.", mend="Compare it with the project's."
        ) from None
    open_places = [
        *(
            f"{name}.{key}"
            for name, each in connections.items()
            for key in each
            if PLACEHOLDER in json.dumps(each[key])
        ),
        *(name for name, value in variables.items() if PLACEHOLDER in value),
    ]
    if open_places:
        raise SettingsRefused(
            f"{file} still has {PLACEHOLDER} in {', '.join(open_places)}.",
            mend="Copy the file to where nobody else reads it, and put the real values there.",
        )
    return Settings(connections, variables, pools)
