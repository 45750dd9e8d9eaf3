"""What `make demo` and `make airflow` stand on: a directory, servers, an installation; all gone when it is over."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.server import terminated_like_interrupted

MORTAL = {"dynamic_shared_memory_type": "mmap"}
"""A server that is killed leaves what it shared in its own directory, and not in the machine's memory."""

out = Console(highlight=False)


@contextmanager
def stage(name: str) -> Iterator[Path]:
    """A directory for everything, removed at the end; inside the block every signal to end is a `KeyboardInterrupt`."""
    directory = Path(tempfile.mkdtemp(prefix=f"synapse-backups-{name}-"))
    directory.chmod(0o711)  # as root, PostgreSQL runs as somebody else, who must pass
    try:
        with terminated_like_interrupted():
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def installed(directory: Path) -> Iterator[Installation]:
    """Two S3 regions, PostgreSQL in each, and a seeded Synapse in the first; the second site is empty."""
    with ExitStack() as servers:
        with step("Starting two regions: PostgreSQL and S3 in each"):
            postgres = servers.enter_context(PostgresServer(directory / "postgres", settings=MORTAL))
            elsewhere = servers.enter_context(PostgresServer(directory / "postgres-dr"))
            primary = servers.enter_context(S3Server(directory / "s3-primary", region="eu-west-1"))
            replica = servers.enter_context(S3Server(directory / "s3-replica", region="us-east-1"))
        with step("Filling Synapse with users, chats, files and configuration"):
            installation = Installation.make(
                directory, postgres=postgres, primary=primary, replica=replica, dr_postgres=elsewhere
            )
        yield installation


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took once it is done."""
    began = time.monotonic()
    out.print(f"[bold]·[/] {what} …")
    yield
    out.print(f"  [dim]{time.monotonic() - began:.1f} s[/]")
