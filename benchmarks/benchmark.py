"""What both benchmarks are started as."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import Result, record, show
from include.sandbox.server import terminated_like_interrupted

FULL_BYTES, QUICK_BYTES = 1_000_000_000, 100_000_000
FULL_ROUNDS, QUICK_ROUNDS = 3, 1


def benchmark(program: str, description: str, measured: Callable[[Path, int, int], list[Result]]) -> None:
    """Measure in a directory of its own, with so many bytes, so many times; write the results down and show them."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, once; writes no results")
    quick = parser.parse_args().quick
    directory = Path(tempfile.mkdtemp(prefix="synapse-backups-bench-"))
    directory.chmod(0o711)  # as root, PostgreSQL runs as somebody else, who must pass
    try:
        with terminated_like_interrupted():
            results = measured(directory, QUICK_BYTES if quick else FULL_BYTES, QUICK_ROUNDS if quick else FULL_ROUNDS)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if not quick:
        record(results)
    show(results)
