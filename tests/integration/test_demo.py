"""`make demo`, as a newcomer runs it: to its end, and interrupted on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DEMO = [sys.executable, "-u", "-m", "include.sandbox.demo"]
LONGEST = 560


@pytest.fixture
def clean(sandbox_directory: Path) -> Iterator[dict[str, str]]:
    """An environment in which everything temporary goes below one directory; nothing of it may be left."""
    temporary = Path(tempfile.mkdtemp(prefix="demo-", dir=sandbox_directory))
    temporary.chmod(0o711)
    yield {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "120"}
    assert list(temporary.iterdir()) == [], "the demo left files behind"
    assert _processes_of(temporary) == [], "the demo left processes behind"


@pytest.mark.soak
@pytest.mark.parametrize("at", ["Running the DAG full_backup", "Running the DAG disaster_recovery"])
def test_an_interrupted_demo_leaves_nothing_behind(clean: dict[str, str], at: str) -> None:
    with subprocess.Popen(DEMO, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if at in line:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.communicate(timeout=LONGEST)[0]

    assert demo.returncode == 130, rest
    assert "Interrupted" in rest


@pytest.mark.requirement("R0", "R1.1", "R2.1", "R2.2", "R2.3", "R5.3", "R5.4", "R5.5", "R9")
def test_the_demo_brings_everything_back_twice(clean: dict[str, str]) -> None:
    demo = subprocess.run(DEMO, env=clean, capture_output=True, text=True, timeout=LONGEST, check=False)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    restored, drill = demo.stdout.split("compared by")[1].split("The drill passed")
    assert "NO" not in restored + drill
    assert "writes stopped" in demo.stdout
    told = [[cell.strip() for cell in line.split("│")[1:-1]] for line in drill.splitlines() if line.startswith("│")]
    rows = {row[0].split(":")[0]: row[1:] for row in told}
    assert rows["RTO"][1:] == ["4:00:00", "yes"]
    assert rows["RPO"][1:] == ["1:00:00", "yes"]
    for step in ("restore_from_backup", "check_data_consistency", "check_application_state", "check_service_health"):
        assert rows[step][2] == "yes"
    for check in ("rows", "content", "orphans of a foreign key", "login", "upload", "new message"):
        assert rows[check][2] == "yes"
    held, every = rows["every check"][0].split(" of ")
    assert held == every
    assert int(every) > 100


def _processes_of(directory: Path) -> list[str]:
    """What still runs and was started for this directory, by its command line or its working directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(directory) in word for word in words):
            found.append(" ".join(words))
    return found
