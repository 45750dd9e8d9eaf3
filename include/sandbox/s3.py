"""A real S3 server with versions, checksums and policies, in memory and in its own directory: one region each."""

from __future__ import annotations

import http.client
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from include.errors import BackupError
from include.sandbox.server import LocalServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3Server(LocalServer):
    """One region of S3 (ministack) on 127.0.0.1; its objects are kept in `directory` and survive a restart.

    It checks policies and refuses unknown access keys; the session's own key is its root. Signatures are not checked.
    `port=None` takes a free one. Raises `BackupError` when ministack is not installed.
    """

    name = "The S3 server"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGKILL

    def __init__(self, directory: Path, *, region: str, port: int | None = None) -> None:
        super().__init__(directory, port=port)
        self.region = region
        self.program = Path(sys.prefix) / "ministack" / "bin" / "ministack"  # its own environment: it pins botocore
        if not self.program.exists():
            raise BackupError(f"There is no {self.program}.", mend="Run `make env`.")
        # Not `test`, which passes every check whatever the policies say.
        self._access_key = "AKIA" + secrets.token_hex(8).upper()
        self._secret_key = secrets.token_urlsafe(30)

    @property
    def endpoint_url(self) -> str:
        """Where it listens, as `http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self.port}"

    def session(self) -> boto3.Session:
        """A session with the root key of this server, in its region."""
        return boto3.Session(self._access_key, self._secret_key, region_name=self.region)

    def client(self) -> S3Client:
        """A client of this server, whatever proxies the machine names."""
        return self.session().client("s3", endpoint_url=self.endpoint_url, config=Config(proxies={}))

    def create_bucket(self, name: str) -> str:
        """Make a bucket as R3.1 wants it (versioned, AES-256, closed to the public) and return its name."""
        client = self.client()
        if self.region == "us-east-1":  # the one region that may not be named
            client.create_bucket(Bucket=name)
        else:
            client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": self.region})  # type: ignore[typeddict-item]
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        client.put_bucket_encryption(
            Bucket=name,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
        client.put_public_access_block(
            Bucket=name,
            PublicAccessBlockConfiguration={
                "BlockPublicAcls": True,
                "IgnorePublicAcls": True,
                "BlockPublicPolicy": True,
                "RestrictPublicBuckets": True,
            },
        )
        return name

    def _prepare(self) -> None:
        for part in ("objects", "state", "tmp"):
            (self.directory / part).mkdir(exist_ok=True)

    def _command(self) -> list[str]:
        return [str(self.program)]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory / "tmp"),  # its pid file
            "BIND_HOST": "127.0.0.1",  # else it listens on every address
            "GATEWAY_PORT": str(self.port),
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "MINISTACK_REGION": self.region,
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.directory / "objects"),
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self.directory / "state"),
        }

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/_ministack/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()
