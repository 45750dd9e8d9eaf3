"""Loads `airflow_settings.yaml` (the astro format) where there is no astro.

    python -m include.operators.settings airflow_settings.yaml              # prints `export AIRFLOW_CONN_…` lines
    python -m include.operators.settings --import airflow_settings.yaml     # puts all of it into Airflow's database

A file that still holds a placeholder is refused. The printed lines hold secrets: `eval` them, do not keep them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
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

    def exports(self) -> Iterator[str]:
        """Shell lines that set the connections and variables in the environment. A pool cannot live there."""
        for name, connection in self.connections.items():
            yield f"export AIRFLOW_CONN_{name.upper()}={shlex.quote(json.dumps(connection))}"
        for name, value in self.variables.items():
            yield f"export AIRFLOW_VAR_{name.upper()}={shlex.quote(value)}"

    def load(self) -> None:
        """Put all of it into Airflow's database, over what is there. Raises `SettingsRefused` when Airflow refuses."""
        with tempfile.TemporaryDirectory() as directory:  # mode 0700
            for what, content in (
                ("connections", self.connections),
                ("variables", self.variables),
                ("pools", self.pools),
            ):
                if not content:
                    continue
                file = Path(directory) / f"{what}.json"
                file.write_text(json.dumps(content))
                command = [sys.executable, "-m", "airflow", what, "import", str(file)]
                if what == "connections":
                    command.append("--overwrite")
                if subprocess.run(command, check=False).returncode:
                    raise SettingsRefused(f"Airflow did not take the {what}.", mend="Its words are above.")


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m include.operators.settings", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="the settings file")
    parser.add_argument("--import", dest="load", action="store_true", help="load it into Airflow's database")
    options = parser.parse_args(arguments)
    try:
        settings = read_settings(options.file)
        if options.load:
            settings.load()
        else:
            sys.stdout.writelines(f"{line}\n" for line in settings.exports())
    except BackupError as error:
        sys.stderr.write(f"{error.what}\n{error.mend}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
