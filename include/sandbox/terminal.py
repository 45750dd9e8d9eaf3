"""What a person at the sandbox has in hand: a file to source; then every command of the runbooks can be typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server

PROJECT = Path(__file__).parents[2]
PROFILES = (("synapse", ".s3cfg"), ("synapse-dr", ".s3cfg-dr"))
"""The profile of each region, and the settings of `s3cmd` for it, in the runbooks' words."""


def in_hand(installation: Installation, home: Path) -> dict[str, str]:
    """The variables of such a person, beside the primary region; profiles and `s3cmd`'s settings go into `home`."""
    home.mkdir(mode=0o700, exist_ok=True)
    profiles = ""
    for (profile, settings), server in zip(PROFILES, (installation.primary, installation.replica), strict=True):
        credentials = server.session().get_credentials()
        assert credentials is not None  # noqa: S101 - the sandbox's sessions are made with a key
        key, secret, url = credentials.access_key, credentials.secret_key, server.endpoint_url
        host = url.partition("://")[2]
        profiles += (
            f"[{profile}]\nregion = {server.region}\nendpoint_url = {url}\n"
            f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )
        _private(
            home / settings,
            f"[default]\naccess_key = {key}\nsecret_key = {secret}\nhost_base = {host}\nhost_bucket = {host}\n"
            f"use_https = {isinstance(server, S3Server) is False}\nbucket_location = {server.region}\n",
        )
    _private(home / "credentials", profiles)
    return {
        **installation.break_glass(),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
        "REPLICA_PROFILE": PROFILES[1][0],
        "REPLICA_ENDPOINT_URL": installation.replica.endpoint_url,
        "CHECKOUT": str(installation.synapse.configuration),
        "HOME": str(home),
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.prefix) / 'bin'}:{installation.postgres.binaries}:/usr/local/bin:/usr/bin:/bin",
    }


def write_terminal(installation: Installation, directory: Path, airflow: Mapping[str, str]) -> Path:
    """The file to source in a terminal of one's own; whoever reads it may do everything, so only its owner can.

    Of `airflow`, the environment of the sandbox's Airflow, it takes the settings: `airflow` is typed in runbooks, too.
    """
    settings = {name: value for name, value in airflow.items() if name.startswith(("AIRFLOW_HOME", "AIRFLOW__"))}
    variables = {**settings, **in_hand(installation, directory / "home")}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    path = directory / "terminal.sh"
    _private(path, "\n".join([*lines, f"cd {shlex.quote(variables['HOME'])}"]) + "\n")
    return path


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
