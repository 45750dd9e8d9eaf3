"""`make airflow`, for a newcomer: it says where it is, lets one user in, backs up, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil
import pytest

from include.errors import BackupError
from include.sandbox.airflow import AirflowClient

DAG = "full_backup"
RUN_WITHIN = 240.0
LONGEST = 120


@dataclass
class Tryout:
    """One that stands: what it printed, and what else it prints."""

    url: str
    user: str
    password: str
    terminal: str
    process: subprocess.Popen[str]
    lines: IO[str]

    def mail(self, words: str) -> str:
        """The file of the next mail whose subject has the words."""
        for line in self.lines:
            if line.startswith("mail to") and words in line:
                return next(self.lines).strip()
        raise AssertionError("it ended before the mail came")


@contextmanager
def standing(directory: Path) -> Iterator[Tryout]:
    """One that is ended by a signal; nothing of it may be left."""
    temporary = Path(tempfile.mkdtemp(prefix="tryout-", dir=directory))
    temporary.chmod(0o711)
    command = [sys.executable, "-u", "-m", "include.sandbox.tryout"]
    environment = {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said: dict[str, str] = {}
            for line in process.stdout:
                if match := re.fullmatch(r"(address|user|password|in a terminal) +(?:\. )?(\S+)\s*", line):
                    said[match[1]] = match[2]
                if "Ctrl-C stops" in line:
                    break
            yield Tryout(
                said["address"], said["user"], said["password"], said["in a terminal"], process, process.stdout
            )
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=LONGEST)[0]
    assert process.returncode == 0, rest
    assert "Stopped" in rest
    assert [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    assert list(temporary.iterdir()) == []


@pytest.mark.soak  # what it shows of Airflow, tests/dags/test_runs.py shows daily; that all of it stands up, the demo
@pytest.mark.requirement("R0", "R4.6", "R9")
def test_it_lets_one_user_in_backs_up_and_leaves_nothing_behind(sandbox_directory: Path) -> None:
    with standing(sandbox_directory) as tryout:
        with pytest.raises(BackupError, match="401"):
            AirflowClient(tryout.url, tryout.user, "wrong")
        for path in ("/api/v2/dags", f"/runbooks/{DAG}"):
            assert httpx.get(f"{tryout.url}{path}", trust_env=False).status_code == httpx.codes.UNAUTHORIZED

        client = AirflowClient(tryout.url, tryout.user, tryout.password)
        run = client.wait_for_run(DAG, "scheduled", within=RUN_WITHIN)
        link = client.links(DAG, run, "execute.create_backup")["Runbook"]
        assert link is not None
        assert link.endswith(f"/runbooks/{DAG}#execute.create_backup")
        assert '<h3 id="execute.create_backup">' in client.page(link)

        assert client.wait(DAG, run, within=RUN_WITHIN) == "success"
        assert Path(tryout.mail("succeeded")).exists()

        commands = "python -m include.cli list; s3cmd -c ~/.s3cfg-dr ls; psql -XAtd synapse -c 'SELECT 17'"
        script = f". {tryout.terminal}; {commands}"
        typed = subprocess.run(["bash", "-euc", script], env={}, capture_output=True, text=True, check=True).stdout
        assert [word for word in ("full-20", "s3://synapse-backups-dr", "17") if word not in typed] == []
