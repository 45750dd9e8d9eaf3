"""Synapse as a live application: its service, as one of the sandbox's servers."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from pathlib import Path

from include.pipeline.store import Bucket
from include.recovery.validation.service import HOST, PROJECT, service_environment
from include.sandbox.server import LocalServer
from include.sources.postgres.login import DatabaseLogin


class SynapseService(LocalServer):
    """`include.sandbox.service` over a database, a bucket and a checkout; ready when its health endpoint says so."""

    name = "Synapse's service"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGKILL

    def __init__(
        self,
        directory: Path,
        *,
        database: DatabaseLogin,
        bucket: Bucket,
        configuration: Path,
        prefix: str = "",
        port: int | None = None,
    ) -> None:
        super().__init__(directory, port=port)
        self._database, self._bucket = database, bucket
        self._configuration, self._objects_below = configuration, prefix

    @property
    def url(self) -> str:
        """Where it listens, as `http://127.0.0.1:port`."""
        return f"http://{HOST}:{self.port}"

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "include.sandbox.service"]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self.directory),
            "PYTHONPATH": str(PROJECT),
            **service_environment(
                database=self._database,
                bucket=self._bucket,
                prefix=self._objects_below,
                configuration=self._configuration,
                port=self.port,
            ),
        }

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
