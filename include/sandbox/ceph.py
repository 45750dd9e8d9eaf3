"""A second, different S3 server: a one-node Ceph with its RADOS gateway, from Debian's packages.

It checks signatures and serves versions and multipart uploads for real, and it *ignores* `If-None-Match` and
`x-amz-checksum-*`: what holds on both servers does not lean on either's kindness. It has no Glacier and no replication.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import botocore.session

from include.errors import BackupError
from include.sandbox.certificate import make_certificate
from include.sandbox.server import LocalServer, free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph-authtool", "monmaptool", "radosgw-admin", "ceph")
ADMIN_SECONDS = 120

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
run dir = {directory}/run
admin socket = {directory}/run/$cluster-$name.asok
log file = {directory}/log/$name.log
keyring = {directory}/keyring
[mon.a]
host = localhost
mon data = {directory}/mon
mon addr = 127.0.0.1:{monitor}
[osd.0]
osd data = {directory}/osd
osd objectstore = bluestore
bluestore block size = 25769803776
osd memory target = 1073741824
"""


class _Daemon(LocalServer):
    """One of the three daemons; all share the gateway's directory and its configuration file."""

    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGKILL
    ready_within = 90.0
    program: str
    arguments: tuple[str, ...]

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        path = shutil.which(self.program)
        assert path is not None  # noqa: S101 - the gateway has looked for all of them
        return [path, f"--conf={self.directory.parent / 'ceph.conf'}", "-f", *self.arguments]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "")}

    def _answers(self) -> bool:
        return True  # the first to need it waits for it


class _Monitor(_Daemon):
    name, program, arguments = "Ceph's monitor", "ceph-mon", ("-i", "a")


class _Osd(_Daemon):
    name, program, arguments = "Ceph's object storage daemon", "ceph-osd", ("-i", "0")


class _Gateway(_Daemon):
    name, program, arguments = "Ceph's S3 gateway", "radosgw", ("-n", "client.admin", "--ms-mon-client-mode=crc")

    certificate: tuple[Path, Path] | None = None
    """The certificate and its key, when it listens with TLS."""

    def _command(self) -> list[str]:
        endpoint = f"endpoint=127.0.0.1:{self.port}"
        if self.certificate:
            trusted, secret = self.certificate
            endpoint = f"ssl_{endpoint} ssl_certificate={trusted} ssl_private_key={secret}"
        return [*super()._command(), f"--rgw-frontends=beast {endpoint}"]

    def _answers(self) -> bool:
        connection = self._connection()
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
        except OSError:
            return False
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self.certificate:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        context = ssl.create_default_context(cafile=self.certificate[0])
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)


class CephGateway:
    """An S3 server with one user, on 127.0.0.1, for as long as the `with` block; about 30 s to start.

    `directory` must be short: sockets lie in it. With `tls` it listens with TLS alone, and its sessions verify its
    certificate. Raises `BackupError` when Ceph is not installed.
    """

    region = "us-east-1"

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory.absolute()
        self._tls = tls
        if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise BackupError(
                f"Ceph is not installed: there is no {', '.join(missing)}.",
                mend="apt-get install radosgw ceph-mon ceph-osd (Debian), as .ci/run does.",
            )
        self._gateway = _Gateway(self.directory / "gateway")
        self._access_key, self._secret_key = secrets.token_hex(10).upper(), secrets.token_hex(20)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        for name in ("mon", "osd", "run", "log"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if self._tls:
            self._gateway.certificate = make_certificate(self.directory)
        with ExitStack() as running:
            monitor = _Monitor(self.directory / "monitor", port=free_port())
            self._configure(monitor.port)
            running.enter_context(monitor)
            osd = str(uuid.uuid4())
            self._run("ceph", "osd", "new", osd)
            self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
            running.enter_context(_Osd(self.directory / "storage"))
            self._run(
                *("radosgw-admin", "--ms-mon-client-mode=crc", "user", "create", "--uid=sandbox"),
                *("--display-name=sandbox", f"--access-key={self._access_key}", f"--secret-key={self._secret_key}"),
            )
            running.enter_context(self._gateway)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def endpoint_url(self) -> str:
        """Where it listens, as `http://127.0.0.1:port`, or `https` with TLS."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._gateway.port}"

    @property
    def certificate(self) -> Path | None:
        """What clients verify it against, for `AWS_CA_BUNDLE` and the like; None without TLS."""
        return self._gateway.certificate and self._gateway.certificate[0]

    def session(self) -> boto3.Session:
        """A session with the user's key."""
        return self._session(self._access_key, self._secret_key)

    def client(self) -> S3Client:
        """A client of this server."""
        return self.session().client("s3", endpoint_url=self.endpoint_url)

    def create_bucket(self, name: str) -> str:
        """Make a bucket that keeps versions, and return its name."""
        client = self.client()
        client.create_bucket(Bucket=name)
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    @contextmanager
    def user(self, *, quota_bytes: int) -> Iterator[boto3.Session]:
        """A session of another user, whose buckets hold so many bytes at most together; both are gone at the end."""
        name, access_key, secret_key = secrets.token_hex(4), secrets.token_hex(10).upper(), secrets.token_hex(20)
        administer = ("radosgw-admin", "--ms-mon-client-mode=crc", f"--uid={name}")
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        self._run(*administer, "user", "create", f"--display-name={name}", *keys)
        self._run(*administer, "quota", "set", "--quota-scope=user", f"--max-size={quota_bytes}")
        self._run(*administer, "quota", "enable", "--quota-scope=user")
        try:
            yield self._session(access_key, secret_key)
        finally:
            self._run(*administer, "user", "rm", "--purge-data")

    def crash(self) -> None:
        """SIGKILL the gateway; what it stored is with the other daemons, and stays."""
        self._gateway.crash()

    def start(self) -> None:
        """Start the gateway again on the same port, after a crash."""
        self._gateway.start()

    def _session(self, access_key: str, secret_key: str) -> boto3.Session:
        inner = botocore.session.get_session()
        if self.certificate:
            inner.set_config_variable("ca_bundle", str(self.certificate))
            # Over TLS botocore sends checksums behind the body, which this gateway does not read.
            inner.set_config_variable("request_checksum_calculation", "when_required")
        return boto3.Session(access_key, secret_key, region_name=self.region, botocore_session=inner)

    def _configure(self, monitor: int) -> None:
        fsid = str(uuid.uuid4())
        (self.directory / "ceph.conf").write_text(
            CONFIGURATION.format(fsid=fsid, monitor=monitor, directory=self.directory)
        )
        keyring, monmap = str(self.directory / "keyring"), str(self.directory / "monmap")
        self._run("ceph-authtool", "-C", keyring, "-n", "mon.", "--gen-key", "--cap", "mon", "allow *")
        admin = ("-n", "client.admin", "--gen-key", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
        self._run("ceph-authtool", keyring, *admin)
        address = f"[v2:127.0.0.1:{monitor}]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def _run(self, *argv: str) -> None:
        """Run one of Ceph's own programs against this node."""
        environment = {"PATH": os.environ.get("PATH", ""), "CEPH_CONF": str(self.directory / "ceph.conf")}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=ADMIN_SECONDS, check=False)
        if done.returncode:
            raise BackupError(f"{argv[0]} failed: {done.stderr[-500:]}", mend=f"See {self.directory}/log.")
