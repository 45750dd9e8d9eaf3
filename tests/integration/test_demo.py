"""`make demo`, as a newcomer runs it: twice, the first time interrupted in the middle."""

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
LONGEST = 300


@pytest.fixture
def clean(sandbox_directory: Path) -> Iterator[dict[str, str]]:
    """An environment in which everything temporary goes below one directory; nothing of it may be left."""
    temporary = Path(tempfile.mkdtemp(prefix="demo-", dir=sandbox_directory))
    temporary.chmod(0o711)
    yield {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "120"}
    assert list(temporary.iterdir()) == [], "the demo left files behind"
    assert _processes_of(temporary) == [], "the demo left processes behind"


@pytest.mark.soak
def test_an_interrupted_demo_leaves_nothing_behind(clean: dict[str, str]) -> None:
    with subprocess.Popen(DEMO, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Running the DAG" in line:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.communicate(timeout=LONGEST)[0]

    assert demo.returncode == 130, rest
    assert "Interrupted" in rest


@pytest.mark.requirement("R0", "R1.1", "R2.1", "R2.2", "R2.3", "R9")
def test_the_demo_brings_everything_back(clean: dict[str, str]) -> None:
    demo = subprocess.run(DEMO, env=clean, capture_output=True, text=True, timeout=LONGEST, check=False)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "NO" not in demo.stdout.split("compared by")[1]
    assert "writes stopped" in demo.stdout


def _processes_of(directory: Path) -> list[str]:
    """What still runs and was started for this directory, by its command line or its working directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(directory) in word for word in words):
            found.append(" ".join(words))
    return found
