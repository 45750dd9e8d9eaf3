"""The two switches that lie outside the log of the sites: the site's environment file, and the name that users know.

Each is looked at, made, read back and restored; each can be tried again whenever it died, because what it finds is
either what was there before, or what it made. Anything else was made by somebody else meanwhile, and is never replaced.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from include.disaster.plan import ServiceRecord
from include.disaster.site_log import SwitchName
from include.errors import BackupError
from include.pipeline.disk import sync_directory

if TYPE_CHECKING:
    import boto3

PRIVATE = 0o600
INSYNC_WITHIN = 300.0
"""Seconds that Route 53 may take to bring a change to all of its servers; it takes about sixty."""
_FIRST_POLL, _LONGEST_POLL = 0.1, 5.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LINE = re.compile(rb"(?P<head>[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)[ \t]*=)[^\r\n]*(?P<end>\r?\n?)")


class NotSwitched(BackupError):
    """A switch that could not be made, or taken back."""


class ChangedMeanwhile(NotSwitched):
    """What is to be switched is neither what was there before nor what this run made: somebody else changed it."""


class Switch(Protocol):
    """One switch. `before` is what `look` told when it was begun; it is in the log, so it holds no secret."""

    name: SwitchName

    def look(self) -> Any:
        """What is there; raises `NotSwitched` when the switch could not be made as things are."""

    def words(self) -> str:
        """What it will be, in words."""

    def make(self, before: Any) -> None:
        """Make it, and read it back; nothing is done where it was made before."""

    def restore(self, before: Any) -> None:
        """Put back what was there, and read it back; nothing is done where that is there."""


class EnvironmentFile:
    """The site's settings in the environment file of its checkout; other lines, comments, order and mode stay.

    What was there is kept beside it, as `<file>.before-<run>` with mode 0600, first: it tells what to put back, and
    whether somebody else changed the file. Values are written as they stand in the plan.
    """

    name: SwitchName = "configuration"

    def __init__(self, path: Path, values: Mapping[str, str], *, run: str) -> None:
        self._named = path
        self._values = dict(values)
        self._run = run

    def look(self) -> dict[str, Any]:
        """Where what is there will be kept, and whether the values are there already."""
        for name, value in self._values.items():
            if not _VARIABLE.fullmatch(name) or set(value) & set("\r\n\0"):
                raise NotSwitched(
                    f"The plan's environment has {name!r}, which is no line of an environment file.",
                    mend="Correct `environment` of the site in the plan.",
                )
        with self._telling():
            now = self._path.read_bytes()
        return {"kept": self._kept.name, "already": self._with_values(now) == now}

    def words(self) -> str:
        """The file, and the values that it gets."""
        return f"{self._named}: {', '.join(f'{name}={value}' for name, value in self._values.items())}"

    def make(self, before: Any) -> None:
        """Keep what is there, then put the file with the values in its place. Raises `ChangedMeanwhile`."""
        with self._telling():
            if not self._kept.exists():
                self._keep()
            was, now = self._kept.read_bytes(), self._path.read_bytes()
            wanted = self._with_values(was)
            if now not in (was, wanted):
                raise self._changed("Clear the task then: it goes on.")
            self._replace(now, wanted)

    def restore(self, before: Any) -> None:
        """Put back what was kept. Raises `ChangedMeanwhile`, and `NotSwitched` when what was kept is gone."""
        with self._telling():
            now = self._path.read_bytes()
            if not self._kept.exists():
                if before["already"] or self._with_values(now) != now:
                    return  # it was never changed: what is there is kept before anything else
                raise NotSwitched(
                    f"{self._kept} is gone, and {self._path} has the values of this run: what was there is not known.",
                    mend="Put that file back, or write what was in it by hand into the environment file; then again.",
                )
            was = self._kept.read_bytes()
            if now not in (was, self._with_values(was)):
                raise self._changed("Undo again then.")
            self._replace(now, was)

    @property
    def _path(self) -> Path:
        return self._named.resolve()

    @property
    def _kept(self) -> Path:
        return self._path.with_name(f"{self._path.name}.before-{self._run}")

    def _changed(self, then: str) -> ChangedMeanwhile:
        return ChangedMeanwhile(
            f"{self._path} was changed by somebody else since this run began: it is left as it is.",
            mend=f"Compare it with {self._kept.name} beside it, put that content back (`cp`), and make the change of "
            f"your own again after all is switched. {then}",
        )

    def _with_values(self, content: bytes) -> bytes:
        """The content with our values: in their lines where there are some, else at the end."""
        missing = dict(self._values)
        lines = []
        for line in content.splitlines(keepends=True):
            found = _LINE.fullmatch(line)
            if found and (name := found["name"].decode()) in self._values:
                missing.pop(name, None)
                line = found["head"] + self._values[name].encode() + found["end"]  # noqa: PLW2901
            lines.append(line)
        end = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
        if missing and lines and not lines[-1].endswith(b"\n"):
            lines[-1] += end
        return b"".join([*lines, *(f"{name}={value}".encode() + end for name, value in missing.items())])

    def _keep(self) -> None:
        """Keep what is there, whole or not at all."""
        beside = self._write(self._path.read_bytes(), mode=PRIVATE)
        with suppress(FileExistsError):
            os.link(beside, self._kept)
        beside.unlink()
        sync_directory(self._kept.parent)

    def _replace(self, now: bytes, wanted: bytes) -> None:
        if now != wanted:
            there = self._path.stat()
            beside = self._write(wanted, mode=stat.S_IMODE(there.st_mode), owner=(there.st_uid, there.st_gid))
            beside.replace(self._path)
            sync_directory(self._path.parent)
        if self._path.read_bytes() != wanted:
            raise self._changed("Then again.")

    def _write(self, content: bytes, *, mode: int, owner: tuple[int, int] | None = None) -> Path:
        """A durable file beside it, under a name that a try which died left behind for the next one to take."""
        beside = self._path.with_name(f".{self._path.name}.{self._run}")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, *owner)
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        return beside

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NotSwitched(
                f"The environment file {self._named} cannot be switched: {error.strerror or error}.",
                mend="The site's configuration has to be there (it is restored before the switch), and this user "
                "must be allowed to replace the file.",
            ) from error


class ServiceName:
    """The name that users know, in Route 53: one CNAME to the site. `dns` is a boto3 client of `route53`.

    A change is one batch that deletes exactly what was there before and creates what is wanted; Route 53 carries out
    all of it or nothing, so what somebody else put there meanwhile is refused and not lost.
    """

    name: SwitchName = "service"

    def __init__(self, dns: Any, record: ServiceRecord, target: str) -> None:
        self._dns = dns
        self._record = record
        self._name = _absolute(record.name)
        self._wanted: list[dict[str, Any]] = [
            {
                "Name": self._name,
                "Type": "CNAME",
                "TTL": int(record.ttl.total_seconds()),
                "ResourceRecords": [{"Value": target}],
            }
        ]

    def look(self) -> dict[str, Any]:
        """The zone's id, and every record set that the name has, as Route 53 tells them."""
        zone = self._zone()
        return {"zone": zone, "sets": self._sets(zone)}

    def words(self) -> str:
        """The name, and where it will lead."""
        return f"{self._name}: {_told(self._wanted)}"

    def make(self, before: Any) -> None:
        """Lead the name to the site; raises `NotSwitched` or `ChangedMeanwhile`."""
        self._change(before["zone"], before["sets"], self._wanted)

    def restore(self, before: Any) -> None:
        """Exactly the record sets of before, or none; raises `NotSwitched` or `ChangedMeanwhile`."""
        self._change(before["zone"], self._wanted, before["sets"])

    def _change(self, zone: str, old: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
        now = self._sets(zone)
        if _same(now, wanted):  # an earlier try may have died before every server had it: this change is behind that
            changes = [("UPSERT", each) for each in now]
        elif _same(now, old):
            changes = [*(("DELETE", each) for each in now), *(("CREATE", each) for each in wanted)]
        else:
            raise ChangedMeanwhile(
                f"{self._name} was changed by somebody else since this run began: it has {_told(now)}.",
                mend=f"Set it to what this run expects ({_told(old)}) or wants ({_told(wanted)}) in Route 53's "
                "console, and start again.",
            )
        if changes:
            self._submit(zone, changes)
        if not _same(now := self._sets(zone), wanted):
            raise NotSwitched(
                f"{self._name} was to have {_told(wanted)}, and has {_told(now)}.", mend="Look who else changes it."
            )

    def _submit(self, zone: str, changes: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Send the changes as one batch, and wait until every server of Route 53 has it."""
        batch = {"Changes": [{"Action": action, "ResourceRecordSet": each} for action, each in changes]}
        with self._telling("change"):
            change = self._dns.change_resource_record_sets(HostedZoneId=zone, ChangeBatch=batch)["ChangeInfo"]
        deadline, pause = time.monotonic() + INSYNC_WITHIN, _FIRST_POLL
        while change["Status"] != "INSYNC":
            if time.monotonic() > deadline:
                raise NotSwitched(
                    f"Route 53 took the change of {self._name}, and has not brought it to all of its servers within "
                    f"{INSYNC_WITHIN:.0f} s.",
                    mend="Look at https://health.aws.amazon.com; start again: nothing is changed twice.",
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)
            with self._telling("wait for the change of"):
                change = self._dns.get_change(Id=change["Id"])["ChangeInfo"]

    def _zone(self) -> str:
        wanted = _absolute(self._record.zone)
        with self._telling("find the zone of"):
            answer = self._dns.list_hosted_zones_by_name(DNSName=wanted)
        zones = [
            str(zone["Id"])
            for zone in answer["HostedZones"]
            if _absolute(zone["Name"]) == wanted and not zone.get("Config", {}).get("PrivateZone")
        ]
        if len(zones) != 1:
            raise NotSwitched(
                f"There are {len(zones)} public zones {wanted} in Route 53, where one is needed.",
                mend="Correct `switches.service.zone` of the plan, or the connection: it may be another account's.",
            )
        return zones[0].rpartition("/")[2]

    def _sets(self, zone: str) -> list[dict[str, Any]]:
        with self._telling("look up"):
            answer = self._dns.list_resource_record_sets(HostedZoneId=zone, StartRecordName=self._name)
        return [each for each in answer["ResourceRecordSets"] if _absolute(each["Name"]) == self._name]

    @contextmanager
    def _telling(self, verb: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            told = error.response["Error"]
            raise NotSwitched(
                f"Could not {verb} {self._name} in Route 53: {told.get('Code', '')} {told.get('Message', '')}".rstrip(),
                mend="Check the connection of `switches.service`, and what it is allowed to do.",
            ) from error
        except BotoCoreError as error:
            raise NotSwitched(
                f"Could not {verb} {self._name} in Route 53: {error}",
                mend="Check that Route 53 can be reached from here and that credentials are set.",
            ) from error


def dns_client(session: boto3.Session, *, endpoint_url: str | None = None) -> Any:
    """A client of `route53`, which is in one region for all, and which gives up within a minute."""
    config = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})
    return session.client("route53", region_name="us-east-1", endpoint_url=endpoint_url, config=config)


def _absolute(name: str) -> str:
    return name.rstrip(".").lower() + "."


def _same(some: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> bool:
    return sorted(map(_told_one, some)) == sorted(map(_told_one, others))


def _told(sets: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(map(_told_one, sets)) or "no record"


def _told_one(record: Mapping[str, Any]) -> str:
    """A record set in one line, the same for the same one."""
    values = sorted(_value(record["Type"], each["Value"]) for each in record.get("ResourceRecords", []))
    rest = {key: record[key] for key in sorted(record) if key not in {"Name", "Type", "TTL", "ResourceRecords"}}
    return f"{record['Type']} {record.get('TTL', '')} {' '.join(values)} {rest or ''}".strip()


def _value(kind: str, value: str) -> str:
    return _absolute(value) if kind == "CNAME" else value
