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
from collections.abc import Iterator
from pathlib import Path

from include.errors import BackupError
from include.settings import Settings, SettingsRefused, read_settings


def exports(settings: Settings) -> Iterator[str]:
    """Shell lines that set the connections and variables in the environment. A pool cannot live there."""
    for name, connection in settings.connections.items():
        yield f"export AIRFLOW_CONN_{name.upper()}={shlex.quote(json.dumps(connection))}"
    for name, value in settings.variables.items():
        yield f"export AIRFLOW_VAR_{name.upper()}={shlex.quote(value)}"


def load(settings: Settings) -> None:
    """Put all of it into Airflow's database, over what is there. Raises `SettingsRefused` when Airflow refuses."""
    with tempfile.TemporaryDirectory() as directory:  # mode 0700
        for what, content in (
            ("connections", settings.connections),
            ("variables", settings.variables),
            ("pools", settings.pools),
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
            load(settings)
        else:
            sys.stdout.writelines(f"{line}\n" for line in exports(settings))
    except BackupError as error:
        sys.stderr.write(f"{error.what}\n{error.mend}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
