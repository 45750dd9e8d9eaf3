"""Bad input, each its own clear error, and nothing lost.

Whatever is wrong, three things hold: the error says what happened, to what, and what to do next, and no secret; nothing
is committed, by *prepare* nor by a creation that goes on without it; and the backup that was there before is untouched.

`BAD_INPUT_SEED` replays the flips and edits of a run, which prints it.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from include.backup import prepare
from include.backup.application import Application
from include.backup.checks import database
from include.backup.consistency import stop_writes
from include.backup.full import make_full_backup
from include.backup.sample import named, turn_of
from include.backup.verify import check_integrity, check_sizes, prove_sample
from include.errors import BackupError
from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database, restore_sample
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.envelopes import open_data_key
from include.repository.layout import BackupId
from include.repository.manifest import Artifact, Manifest, Pack
from include.repository.packs import check_pack
from include.sandbox.ceph import CephGateway
from include.sandbox.installation import GRANTS, Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sources.configuration import Configuration
from include.sources.objects import IndexEntry
from include.sources.postgres import tools

BACKUP, NEXT = BackupId.parse("full-20261122T000000Z"), BackupId.parse("full-20261123T000000Z")
POLICY = load_policy()
WRONG_PASSWORD = "this-is-not-the-password"
SEED = int(os.environ.get("BAD_INPUT_SEED") or secrets.randbelow(2**32))
FLIPS, EDITS = 200, 50


@dataclass(frozen=True)
class Setup:
    """What a run works with; `catalog` is opened when it is asked for, as a task does."""

    installation: Installation
    application: Application
    catalog: Callable[[], Catalog]
    directory: Path
    hidden: Sequence[str]
    """What no error may tell."""
    policy: Policy = POLICY

    def with_application(self, **changes: object) -> Setup:
        return replace(self, application=replace(self.application, **changes))  # type: ignore[arg-type]

    def with_backups(self, bucket: Bucket) -> Setup:
        return replace(self, catalog=lambda: Catalog(bucket, Keyring.load(self.installation.keyring)))

    def prepare(self) -> None:
        """The *prepare* group, step by step."""
        prepare.check_disk(self.directory, self.policy)
        prepare.check_permissions(self.application, self.catalog(), self.policy, backup_type="full")
        prepare.check_database(self.application, self.policy, backup_type="full")
        prepare.check_stores(self.application, self.catalog(), self.policy)
        prepare.check_keys(self.catalog(), self.policy)

    def prepare_increment(self) -> dict[str, Any]:
        """The one task of an hour's *prepare*."""
        return prepare.check_increment(self.application, self.catalog(), self.policy, temporary=self.directory)

    def create(self) -> Manifest:
        """What comes after it, as if what is wrong now had been right until then."""
        stop_writes(self.application, self.policy)
        return make_full_backup(
            NEXT,
            slot=None,
            application=self.application,
            catalog=self.catalog(),
            policy=self.policy,
            scratch=self.directory,
        )


Spoil = Callable[[Setup], AbstractContextManager[Setup]]


@pytest.fixture(scope="module")
def installation(
    sandbox_directory: Path, postgres18: PostgresServer, s3_primary: S3Server, s3_replica: S3Server
) -> Iterator[Installation]:
    """As small as it gets: what is wrong with it does not depend on how much there is."""
    directory = sandbox_directory / "bad-input"
    directory.mkdir()
    made = Installation.make(
        directory, postgres=postgres18, primary=s3_primary, replica=s3_replica, suffix="-bad-input", scale=0.01
    )
    yield made
    made.synapse.destroy()


@pytest.fixture
def setup(installation: Installation, manifest: Manifest, hidden: Sequence[str], tmp_path: Path) -> Setup:
    return Setup(installation, installation.application(), installation.catalog, tmp_path, hidden)


@pytest.fixture(scope="module")
def hidden(installation: Installation) -> list[str]:
    keys = json.loads(installation.keyring.read_text())
    s3 = installation.primary.session().get_credentials()
    assert s3 is not None
    return [
        *(WRONG_PASSWORD, installation.barrier.password, installation.dump.password, s3.secret_key),
        *(key["key"] for key in keys["keks"]),
        *(key["private"] for key in keys["signing_keys"]),
    ]


@pytest.fixture(autouse=True)
def nothing_is_lost_and_no_secret_told(
    installation: Installation,
    catalog: Catalog,
    manifest: Manifest,
    hidden: Sequence[str],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[None]:
    """Around every test: the same manifests are committed, the former backup's objects are those that were written."""
    before = held(catalog, manifest)
    yield
    assert [entry.manifest for entry in catalog.entries()] == [manifest]
    assert held(catalog, manifest) == before
    assert not [secret for secret in hidden if secret in caplog.text]
    with installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        left = session.execute("SELECT datname FROM pg_database WHERE datname LIKE 'restore\\_%'").fetchall()
    assert left == []


def held(catalog: Catalog, manifest: Manifest) -> dict[str, str]:
    """The store's digest of every object that the backup is made of."""
    names = objects_of(manifest, catalog)
    return {version.key: version.etag for version in catalog.bucket.versions("") if version.key in names}


def objects_of(manifest: Manifest, catalog: Catalog) -> set[str]:
    owners = [(manifest.id, manifest.attempt), *((pack.id, pack.attempt) for pack in manifest.packs)]
    return {
        manifest.backup.manifest_key,
        *(segment.key for artifact in manifest.artifacts for segment in artifact.segments),
        *(f"packs/{pack.id}" for pack in manifest.packs),
        *(key for owner, attempt in owners for key in catalog.bucket.keys(f"keys/{owner}/{attempt}/")),
    }


def refused(act: Callable[[], object], *words: str, hiding: Sequence[str]) -> BackupError:
    """It raises an error of ours that has these words, says what to do, and tells no secret."""
    with pytest.raises(BackupError) as error:
        act()
    told = str(error.value)
    assert [word for word in words if word not in told] == [], told
    assert error.value.what
    assert error.value.mend
    assert not [secret for secret in hiding if secret in told]
    return error.value


# --- the servers and the machine ------------------------------------------------------------------------------------


def wrong_password(kind: str) -> Spoil:
    @contextmanager
    def spoil(setup: Setup) -> Iterator[Setup]:
        yield setup.with_application(**{kind: replace(getattr(setup.application, kind), password=WRONG_PASSWORD)})

    return spoil


@contextmanager
def no_such_database(setup: Setup) -> Iterator[Setup]:
    yield setup.with_application(
        barrier=setup.application.barrier.with_database("nobody_made_this"),
        dump=setup.application.dump.with_database("nobody_made_this"),
    )


@contextmanager
def two_databases(setup: Setup) -> Iterator[Setup]:
    yield setup.with_application(dump=setup.application.dump.with_database("postgres"))


def missing_bucket(which: str) -> Spoil:
    @contextmanager
    def spoil(setup: Setup) -> Iterator[Setup]:
        server = setup.installation.primary
        nowhere = Bucket(server.session(), "nobody-made-this", region=server.region, endpoint_url=server.endpoint_url)
        yield setup.with_backups(nowhere) if which == "backups" else setup.with_application(objects=nowhere)

    return spoil


def may(*actions: str) -> Spoil:
    """The credentials for the backups may do these things only."""

    @contextmanager
    def spoil(setup: Setup) -> Iterator[Setup]:
        with user_who_may(setup.installation.primary, *actions) as session:
            yield setup.with_backups(reached(setup, session))

    return spoil


@contextmanager
def user_who_may(server: S3Server | CephGateway, *actions: str) -> Iterator[boto3.Session]:
    iam = server.session().client("iam", endpoint_url=server.endpoint_url, config=Config(proxies={}))
    name = f"user-{secrets.token_hex(4)}"
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="these", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    yield boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=server.region)


def reached(setup: Setup, session: boto3.Session) -> Bucket:
    server = setup.installation.primary
    return Bucket(session, setup.installation.backups, region=server.region, endpoint_url=server.endpoint_url)


@contextmanager
def expired(setup: Setup) -> Iterator[Setup]:
    server = setup.installation.primary
    with user_who_may(server, "s3:*", "sts:*") as session:
        unchecked = Config(proxies={}, parameter_validation=False)  # the client would not ask for one that has ended
        sts = session.client("sts", endpoint_url=server.endpoint_url, config=unchecked)
        given = sts.get_session_token(DurationSeconds=-60)["Credentials"]
        yield setup.with_backups(
            reached(
                setup,
                boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], server.region),
            )
        )


@contextmanager
def unknown_key(setup: Setup) -> Iterator[Setup]:
    yield setup.with_backups(reached(setup, boto3.Session("AKIASTRANGER", WRONG_PASSWORD)))


@contextmanager
def missing_keyring(setup: Setup) -> Iterator[Setup]:
    nowhere = setup.directory / "nowhere.json"
    yield replace(setup, catalog=lambda: Catalog(setup.installation.catalog().bucket, Keyring.load(nowhere)))


@contextmanager
def open_keyring(setup: Setup) -> Iterator[Setup]:
    setup.installation.keyring.chmod(0o644)
    yield setup
    setup.installation.keyring.chmod(0o600)


@contextmanager
def full_disk(setup: Setup) -> Iterator[Setup]:
    needed = POLICY.preparation.model_copy(update={"minimum_free_bytes": 1 << 62})
    yield replace(setup, policy=POLICY.model_copy(update={"preparation": needed}))


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of 64 KiB, nearly full; where only root may mount one, files that may not grow past a few bytes."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            (directory / "ballast").write_bytes(bytes(56 << 10))
            yield directory
        finally:
            subprocess.run(["umount", str(directory)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield directory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def older_tools(setup: Setup) -> Iterator[Setup]:
    """Only PostgreSQL 15's tools are on this machine, and the server is an 18."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "_PACKAGED", ("/usr/lib/postgresql/15/bin",))
        patch.setattr(tools, "_path_directories", lambda: iter(()))
        patch.setattr(tools, "_embedded_directories", lambda: iter(()))
        yield setup


def checkout(change: Callable[[Path, Path], Path]) -> Spoil:
    """Another configuration: `change` makes it from the present one, in an empty directory."""

    @contextmanager
    def spoil(setup: Setup) -> Iterator[Setup]:
        made = change(setup.application.configuration.checkout, setup.directory / "checkout")
        yield setup.with_application(configuration=Configuration(made))

    return spoil


def git(*arguments: str | Path) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *identity, *map(str, arguments)], check=True, capture_output=True)


def no_commits(_: Path, target: Path) -> Path:
    git("init", target)
    return target


def no_repository(_: Path, target: Path) -> Path:
    target.mkdir()
    return target


def shallow(source: Path, target: Path) -> Path:
    whole = target.with_name("whole")
    git("clone", source, whole)
    git("-C", whole, "commit", "--allow-empty", "-m", "one more")
    git("clone", "--depth=1", f"file://{whole}", target)
    return target


def unreadable_secret(source: Path, target: Path) -> Path:
    git("clone", source, target)
    (target / "secrets").mkdir(exist_ok=True)
    (target / "secrets/loop.key").symlink_to("loop.key")  # which not even root can read
    return target


BAD: dict[str, tuple[Spoil, Sequence[str]]] = {
    "wrong password of the barrier": (
        wrong_password("barrier"),
        ["synapse_backup_barrier at 127.0.0.1", "password authentication failed", "Correct the user or the password"],
    ),
    "wrong password of the dump": (
        wrong_password("dump"),
        ["synapse_backup_dump at 127.0.0.1", "password authentication failed", "Correct the user or the password"],
    ),
    "no such database": (no_such_database, ["nobody_made_this", "does not exist", "Correct the database"]),
    "two databases": (two_databases, ["reach", "database", "same server"]),
    "no bucket for backups": (missing_bucket("backups"), ["s3://nobody-made-this", "does not exist", "name"]),
    "no bucket of objects": (missing_bucket("objects"), ["s3://nobody-made-this", "does not exist", "name"]),
    "read-only": (may("s3:Get*", "s3:List*"), ["AccessDenied", "state/probe-", "s3:PutObject", "allow"]),
    "write-only": (may("s3:Put*", "s3:List*", "s3:Delete*"), ["AccessDenied", "s3:GetObject", "allow"]),
    "no list": (may("s3:Get*", "s3:Put*", "s3:Delete*"), ["AccessDenied", "s3:ListBucket", "allow"]),
    "nothing allowed": (may("sts:GetCallerIdentity"), ["AccessDenied", "allow"]),
    "expired credentials": (expired, ["ExpiredToken", "expired", "Renew"]),
    "unknown access key": (unknown_key, ["InvalidAccessKeyId", "credentials"]),
    "no keyring": (missing_keyring, ["nowhere.json", "No such file", "BACKUP_KEYRING", "escrow"]),
    "a keyring for all": (open_keyring, ["keyring.json", "0644", "chmod 600"]),
    "full disk": (full_disk, ["The disk of", "GB free", "preparation.minimum_free_bytes"]),
    "older tools": (older_tools, ["18", "15 in /usr/lib/postgresql/15/bin", "Install the PostgreSQL 18 client"]),
    "no commits": (checkout(no_commits), ["checkout", "no commits", "Commit"]),
    "no repository": (checkout(no_repository), ["not a git repository", "Check that the path"]),
    "shallow clone": (checkout(shallow), ["shallow clone", "git fetch --unshallow"]),
    "unreadable secret": (checkout(unreadable_secret), ["secrets/loop.key", "cannot be read", "Let this user read it"]),
}
STOPPED_BY_PREPARE_ALONE = {
    "write-only",  # what would be made is a whole backup; only that it was committed cannot be read back
    "full disk",  # a creation streams: the few files that it makes may well find room
}


@pytest.mark.requirement("R4.1", "R4.2")
@pytest.mark.parametrize("case", BAD)
def test_it_is_refused_before_anything_is_stopped_and_after(setup: Setup, case: str) -> None:
    spoil, words = BAD[case]
    with spoil(setup) as spoiled:
        refused(spoiled.prepare, *words, hiding=setup.hidden)
        if case not in STOPPED_BY_PREPARE_ALONE:
            refused(spoiled.create, hiding=setup.hidden)


# --- grants.sql ------------------------------------------------------------------------------------------------------

GRANTED = [
    # login, what takes it away, what a backup cannot be made without it, and the words about it
    ("barrier", "GRANT pg_write_all_data", True, "stop writes"),
    ("barrier", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text)", True, "mark the moment"),
    ("barrier", "GRANT SET ON PARAMETER deadlock_timeout", True, "deadlock"),
    ("barrier", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal()", False, "segment of the WAL"),
    ("barrier", "GRANT pg_monitor", False, "in the way"),
    ("dump", "GRANT pg_read_all_data", True, "read every table"),
    ("dump", "BYPASSRLS", True, "row-level security"),
    ("dump", "SET lo_compat_privileges", True, "large object"),
    ("dump", "GRANT pg_read_all_settings", False, "every setting"),
    ("dump", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules()", False, "pg_hba.conf"),
    ("dump", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings()", False, "postgresql.conf"),
    ("dump", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ident_file_mappings()", False, "pg_ident.conf"),
]


@contextmanager
def without(installation: Installation, login: str, grant: str) -> Iterator[None]:
    """Within the block the login lacks one line of grants.sql, which is then run again."""
    role = f"synapse_backup_{login}"
    if grant.startswith("GRANT "):
        taken = f"REVOKE {grant.removeprefix('GRANT ')} FROM {role}"
    elif grant.startswith("SET "):
        taken = f"ALTER ROLE {role} RESET {grant.removeprefix('SET ')}"
    else:
        taken = f"ALTER ROLE {role} NO{grant}"
    owner = installation.postgres.superuser.with_database(installation.dump.dbname)
    with owner.connect(application_name="test", autocommit=True) as session:
        session.execute(taken.encode())
        try:
            yield
        finally:
            session.execute(GRANTS.read_bytes())


def test_no_grant_is_forgotten_here() -> None:
    text = re.sub("--.*", "", GRANTS.read_text())
    granted = {
        (login, " ".join(what.split()))
        for what, login in re.findall(r"^(GRANT [^;]+?) TO synapse_backup_(\w+);", text, re.MULTILINE)
    }
    assert granted == {(login, grant) for login, grant, *_ in GRANTED if grant.startswith("GRANT")}


@pytest.mark.requirement("R4.1", "R7.3")
@pytest.mark.parametrize(("login", "grant", "essential", "words"), GRANTED)
def test_a_missing_grant_is_named_with_what_grants_it(
    setup: Setup, caplog: pytest.LogCaptureFixture, *, login: str, grant: str, essential: bool, words: str
) -> None:
    with without(setup.installation, login, grant):
        if essential:
            told = refused(setup.prepare, f"synapse_backup_{login}", words, hiding=setup.hidden)
            assert grant in told.mend
            refused(setup.create, hiding=setup.hidden)
        else:
            setup.prepare()
            assert words in caplog.text
            assert grant in caplog.text


@pytest.mark.requirement("R4.1", "R1.2")
def test_a_login_that_replicates_no_more_stops_what_needs_the_log_and_nothing_else(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    with without(setup.installation, "replication", "REPLICATION"):
        setup.prepare()
        assert "synapse_backup_replication" in caplog.text
        assert "may not stream base backups" in caplog.text
        refused(setup.prepare_increment, "synapse_backup_replication", "REPLICATION", hiding=setup.hidden)
    assert setup.prepare_increment()["server"]


@pytest.mark.requirement("R4.1")
def test_a_sample_cannot_be_restored_by_a_login_that_makes_no_database(
    setup: Setup, manifest: Manifest, catalog: Catalog
) -> None:
    scratch = setup.installation.scratch

    def sample() -> None:
        with Progress("sample", scratch=setup.directory) as progress:
            opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
            restore_sample(opened, "billing", server=scratch, scratch=setup.directory)

    with setup.installation.postgres.superuser.connect(application_name="test", autocommit=True) as session:
        session.execute(f"ALTER ROLE {scratch.user} NOCREATEDB".encode())
        try:
            refused(lambda: database.privileges(scratch, database.SCRATCH), "CREATEDB", hiding=setup.hidden)
            refused(sample, "CREATE DATABASE", hiding=setup.hidden)
        finally:
            session.execute(f"ALTER ROLE {scratch.user} CREATEDB".encode())


# --- what is in the bucket -------------------------------------------------------------------------------------------


@contextmanager
def instead(catalog: Catalog, key: str, content: bytes | None) -> Iterator[None]:
    """Within the block the object is another, or gone, as if it had been so from the beginning; then as it was."""
    bucket = catalog.bucket
    original = bucket.read(key) if list(bucket.versions(key)) else None
    _only_version(bucket, key, content)
    try:
        yield
    finally:
        _only_version(bucket, key, original)


def _only_version(bucket: Bucket, key: str, content: bytes | None) -> None:
    for version in list(bucket.versions(key)):
        bucket.client.delete_object(Bucket=bucket.name, Key=version.key, VersionId=version.version_id)
    if content is not None:
        bucket.put(key, content)


@dataclass(frozen=True)
class Target:
    """One stored object, how *verify* proves it, and how a restore reads it."""

    key: str
    verify: Callable[[], object]
    restore: Callable[[], object]
    oldest: bool = False
    """Whether its first version counts, whatever is written over it."""


def drained(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def targets(catalog: Catalog, manifest: Manifest, scratch: Path) -> list[Target]:
    """Every object that the backup is made of."""
    progress = Progress("flips", scratch=scratch)
    opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
    entries: dict[str, list[IndexEntry]] = {}
    for component in opened.object_components():
        for entry in opened.objects(component):
            for member in entry.members:
                entries.setdefault(member.pack, []).append(entry)

    def of_artifact(artifact: Artifact) -> Iterator[Target]:
        for segment in artifact.segments:
            yield Target(segment.key, lambda: opened.check(artifact), lambda: drained(opened.read(artifact.name)))

    def of_pack(pack: Pack) -> Target:
        members = [member for entry in entries[pack.id] for member in entry.members if member.pack == pack.id]
        key = open_data_key(catalog.bucket, catalog.keyring, owner=pack.id, attempt=pack.attempt)

        def verify() -> None:
            check_pack(pack, members, bucket=catalog.bucket, key=key, in_flight=4, progress=progress)

        def restore() -> None:
            for entry in entries[pack.id]:
                drained(opened.read_object(entry))

        return Target(f"packs/{pack.id}", verify, restore)

    def of_envelope(owner: str, attempt: str) -> Iterator[Target]:
        def unwrap() -> bytes:
            return open_data_key(catalog.bucket, catalog.keyring, owner=owner, attempt=attempt)

        for key in catalog.bucket.keys(f"keys/{owner}/{attempt}/"):
            yield Target(key, unwrap, unwrap, oldest=True)

    return [
        *(target for artifact in manifest.artifacts for target in of_artifact(artifact)),
        *(of_pack(pack) for pack in manifest.packs),
        *of_envelope(manifest.id, manifest.attempt),
        *(target for pack in manifest.packs for target in of_envelope(pack.id, pack.attempt)),
        Target(BACKUP.manifest_key, lambda: catalog.get(BACKUP), lambda: catalog.get(BACKUP), oldest=True),
    ]


@contextmanager
def newest(catalog: Catalog, key: str, content: bytes) -> Iterator[None]:
    """Within the block the object has a newer version: what is read where nobody asks for the oldest."""
    bucket = catalog.bucket
    made = bucket.client.put_object(Bucket=bucket.name, Key=key, Body=content)["VersionId"]
    try:
        yield
    finally:
        bucket.client.delete_object(Bucket=bucket.name, Key=key, VersionId=made)


@pytest.mark.requirement("R4.5", "R6.4")
def test_200_flipped_bits_are_each_found_by_verify_and_refused_by_restore(setup: Setup, manifest: Manifest) -> None:
    print(f"BAD_INPUT_SEED={SEED}")
    chance, catalog = random.Random(SEED), setup.catalog()
    choices = targets(catalog, manifest, setup.directory)
    for _ in range(FLIPS):
        target = chance.choice(choices)
        content = bytearray(catalog.bucket.read(target.key))
        at, bit = chance.randrange(len(content)), chance.randrange(8)
        content[at] ^= 1 << bit
        with (instead if target.oldest else newest)(catalog, target.key, bytes(content)):
            for act in (target.verify, target.restore):
                told = refused(act, hiding=setup.hidden)
                assert target.key in str(told), f"bit {bit} of byte {at} of {target.key}: {told}"


@pytest.mark.requirement("R7.1")
def test_another_keyring_opens_and_proves_nothing(setup: Setup, manifest: Manifest) -> None:
    bucket, keyring = setup.catalog().bucket, Keyring.load(setup.installation.keyring)
    stranger = Keyring.create(setup.directory / "stranger.json")
    no_kek = replace(stranger, signing_keys={**stranger.signing_keys, **keyring.signing_keys})
    same_names = replace(keyring, keks=dict.fromkeys(keyring.keks, next(iter(stranger.keks.values()))))

    def verify(with_: Keyring) -> Callable[[], object]:
        return lambda: check_integrity(Catalog(bucket, with_), BACKUP, POLICY, scratch=setup.directory)

    refused(verify(stranger), BACKUP.manifest_key, keyring.current_signing_key, hiding=setup.hidden)
    refused(verify(no_kek), manifest.id, keyring.current_kek, "escrow", hiding=setup.hidden)
    refused(verify(same_names), manifest.id, keyring.current_kek, "escrow", hiding=setup.hidden)


# --- edits of manifests ----------------------------------------------------------------------------------------------

Document = dict[str, Any]
Edit = Callable[[random.Random, Document, Document, Keyring], bytes]


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in the document, containers too."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def at(document: Any, path: Sequence[Any]) -> Any:
    for key in path:
        document = document[key]
    return document


def field_changed(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    place = chance.choice([path for path in leaves(document) if not isinstance(at(document, path), dict | list)])
    value = at(document, place)
    match value:
        case bool():
            changed: Any = not value
        case int():
            changed = value + chance.choice((-1, 1, 2**40))
        case str():
            changed = chance.choice((value + "x", value[1:] + "?", value.upper() + "é"))
        case _:
            changed = chance.choice((0, "", []))
    at(document, place[:-1])[place[-1]] = changed
    return canonical_json(document)


def field_dropped(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    place = chance.choice(list(leaves(document)))
    del at(document, place[:-1])[place[-1]]
    return canonical_json(document)


def field_added(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    document[chance.choice(("note", "signature2", "formats"))] = chance.choice((1, "", {}))
    return canonical_json(document)


def swapped(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    name = chance.choice([name for name in document if document[name] != other[name]])
    document[name] = other[name]
    return canonical_json(document)


def row_swapped(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    rows = chance.choice(("artifacts", "packs"))
    number = chance.randrange(len(document[rows]))
    document[rows][number] = chance.choice([row for row in other[rows] if row != document[rows][number]])
    return canonical_json(document)


def signature_stripped(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    match chance.randrange(3):
        case 0:
            del document["signature"]
        case 1:
            del document["signature"][chance.choice(("key", "ed25519"))]
        case _:
            document["signature"] = chance.choice((None, {}, "", []))
    return canonical_json(document)


def signature_replaced(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    document["signature"] = other["signature"]
    return canonical_json(document)


def signed_by_another(chance: random.Random, document: Document, other: Document, stranger: Keyring) -> bytes:
    ours = document.pop("signature")["key"]
    document["database"]["rows"] += 1
    signature = stranger.sign(document)
    named = chance.choice((signature["key"], ours))
    return canonical_json({**document, "signature": {**signature, "key": named}})


def form_broken(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    """The same content in another spelling."""
    stored = canonical_json(document)
    first, *rest = document.items()
    spellings = (
        stored + b"\n",
        b" " + stored,
        b"\xef\xbb\xbf" + stored,
        json.dumps(document, indent=2).encode(),
        json.dumps(document).encode(),
        json.dumps(dict([*rest, first]), separators=(",", ":")).encode(),
        stored[:-1] + b',"format":1}',
        stored.replace(b'"format":1', b'"format":1.0', 1),
        stored.decode().encode("utf-16"),
        stored[: len(stored) // 2],
        b"[" + stored + b"]",
    )
    return chance.choice(spellings)


def moved(chance: random.Random, document: Document, other: Document, _: Keyring) -> bytes:
    """A genuine manifest, in another one's place."""
    return canonical_json(other)


EDITS_OF_MANIFESTS: tuple[Edit, ...] = (
    *(field_changed, field_dropped, field_added, swapped, row_swapped),
    *(signature_stripped, signature_replaced, signed_by_another, form_broken, moved),
)


@pytest.mark.requirement("R4.5")
def test_50_edits_of_manifests_are_each_refused_and_hide_no_other_backup(
    setup: Setup, manifest: Manifest, tmp_path: Path
) -> None:
    print(f"BAD_INPUT_SEED={SEED}")
    chance, catalog = random.Random(SEED), setup.catalog()
    keyring, stranger = catalog.keyring, Keyring.create(tmp_path / "stranger.json")
    other = manifest.model_copy(
        update={
            "id": str(NEXT),
            "attempt": "0" * 16,
            "started": manifest.finished,
            "artifacts": tuple(reversed(manifest.artifacts)),
            "packs": tuple(pack.model_copy(update={"members": pack.members + 1}) for pack in manifest.packs),
        }
    )
    genuine, others = (json.loads(each.sealed(keyring)) for each in (manifest, other))
    with instead(catalog, NEXT.manifest_key, other.sealed(keyring)):
        for number in range(EDITS):
            edit = EDITS_OF_MANIFESTS[number % len(EDITS_OF_MANIFESTS)]
            forged = edit(chance, deepcopy(genuine), deepcopy(others), stranger)
            assert forged != canonical_json(genuine), edit.__name__
            with instead(catalog, BACKUP.manifest_key, forged):
                refused(lambda: catalog.get(BACKUP), BACKUP.manifest_key, hiding=setup.hidden)
                entries = catalog.entries()
            assert [entry.manifest for entry in entries] == [other, None], edit.__name__
            assert BACKUP.manifest_key in str(entries[1].refused)


@pytest.mark.requirement("R4.5")
def test_an_edit_that_comes_later_changes_nothing(setup: Setup, manifest: Manifest) -> None:
    """The oldest version is the backup, whatever somebody writes over it."""
    catalog, key = setup.catalog(), BACKUP.manifest_key
    catalog.bucket.put(key, b"{}")
    latest = next(iter(catalog.bucket.versions(key)))
    try:
        assert catalog.get(BACKUP) == manifest
    finally:
        catalog.bucket.client.delete_object(Bucket=catalog.bucket.name, Key=key, VersionId=latest.version_id)


# --- no room ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R5.1")
def test_a_disk_that_fills_up_stops_a_restore_and_leaves_nothing(
    setup: Setup, manifest: Manifest, catalog: Catalog
) -> None:
    server = setup.installation.postgres.superuser
    with small_disk(setup.directory / "full") as full, Progress("restore", scratch=setup.directory) as progress:
        before = sorted(full.iterdir())
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)

        def database_there() -> None:
            restore_database(opened, server=server, name="filled_up", scratch=full)

        def configuration_there() -> None:
            restore_configuration(opened, full / "configuration")

        for act in (database_there, configuration_there):
            refused(act, str(full), "room", hiding=setup.hidden)
        assert sorted(full.iterdir()) == before


@pytest.mark.requirement("R4.2")
def test_a_full_bucket_is_told_and_commits_nothing(setup: Setup, ceph: CephGateway) -> None:
    """Ceph's quotas: the probes of *prepare* still fit, the backup does not."""
    with ceph.user(quota_bytes=96 << 10) as session:
        client = session.client("s3", endpoint_url=ceph.endpoint_url)
        client.create_bucket(Bucket="full")
        client.put_bucket_versioning(Bucket="full", VersioningConfiguration={"Status": "Enabled"})
        bucket = Bucket(session, "full", region=ceph.region, endpoint_url=ceph.endpoint_url)
        full = setup.with_backups(bucket)

        full.prepare()
        refused(full.create, "QuotaExceeded", "s3://full", "Raise the quota", hiding=setup.hidden)

        assert full.catalog().entries() == []


# --- nothing there ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1.1", "R5.1")
def test_nothing_at_all_is_backed_up_and_comes_back(
    setup: Setup, s3_primary: S3Server, sandbox_directory: Path
) -> None:
    """An empty database, an empty bucket, and a repository of SHA-256 names: green from prepare to restore."""
    installation, server = setup.installation, setup.installation.postgres.superuser
    hashed = setup.directory / "sha256"
    git("init", "--object-format=sha256", hashed)
    git("-C", hashed, "commit", "--allow-empty", "-m", "first")
    with server.connect(application_name="test", autocommit=True) as session:
        session.execute("CREATE DATABASE nothing")
        try:
            with server.with_database("nothing").connect(application_name="test", autocommit=True) as owner:
                owner.execute(GRANTS.read_bytes())
            store = {"region": s3_primary.region, "endpoint_url": s3_primary.endpoint_url}
            names = [s3_primary.create_bucket(f"nothing-{name}") for name in ("files", "backups", "restored")]
            files, backups, restored = (Bucket(s3_primary.session(), name, **store) for name in names)
            objects = POLICY.sources.objects.model_copy(update={"references": ()})
            policy = POLICY.model_copy(update={"sources": POLICY.sources.model_copy(update={"objects": objects})})
            empty = replace(setup.with_backups(backups), policy=policy).with_application(
                barrier=installation.barrier.with_database("nothing"),
                dump=installation.dump.with_database("nothing"),
                objects=files,
                configuration=Configuration(hashed),
            )
            empty.prepare()
            made, catalog = empty.create(), empty.catalog()
            check_integrity(catalog, NEXT, policy, scratch=setup.directory)
            check_sizes(catalog, NEXT, policy, scratch=setup.directory)
            for turn in (turn_of(made, policy), named(made, policy, "unclassified_database")):
                scratch = {"server": installation.scratch, "source": files, "scratch": setup.directory}
                assert prove_sample(catalog, made, policy, turn, **scratch)["record"]
            with Progress("restore", scratch=setup.directory) as progress:
                opened = OpenedBackup(catalog, made, policy=policy.pipeline, progress=progress)
                back = restore_database(opened, server=server, name="nothing_again", scratch=setup.directory)
                assert (back.tables, back.rows) == (0, 0)
                assert restore_objects(opened, restored) == 0
                commit = restore_configuration(opened, setup.directory / "restored")
            assert commit == made.consistency_point.configuration_commit
            assert len(commit) == 64
        finally:
            for name in ("nothing", "nothing_again"):
                session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.mark.requirement("R4.5")
def test_the_former_backup_still_verifies_after_all_of_it(setup: Setup, manifest: Manifest) -> None:
    facts = check_integrity(setup.catalog(), BACKUP, POLICY, scratch=setup.directory)

    assert facts["artifacts"] == len(manifest.artifacts)
