"""What goes wrong between us and the store: each fault at each verb, and at every call of a backup (law 5)."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import pytest
from botocore.retries.standard import ExponentialBackoff

from include.backup.full import make_full_backup
from include.backup.verify import check_integrity
from include.errors import BackupError
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket, ObjectExists, StoreError
from include.pipeline.transfer import Upload
from include.policy import Policy, load_policy
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.sandbox.ceph import CephGateway
from include.sandbox.fingerprint import Object
from include.sandbox.installation import Installation
from include.sandbox.postgres import PostgresServer
from include.sandbox.proxy import Call, Fault, FaultyProxy
from include.sandbox.s3 import S3Server
from include.sources.objects import ObjectGarbled

MIB = 1 << 20
PATIENCE = timedelta(seconds=49)
"""Leaves 3 s for one try."""
SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
"""Which calls of a backup are hit; printed, and set to play it again."""
LIES = (Fault.SHORT, Fault.GARBLED, Fault.PENDING)
MENDED = [fault for fault in Fault if fault not in LIES]
"""Faults that a second try mends; the others are answers that lie, which can only be noticed."""

Server = S3Server | CephGateway


LONG_ON_THE_GATEWAY = pytest.mark.parametrize(
    "server", ["s3_primary", pytest.param("ceph", marks=pytest.mark.soak)], indirect=True, scope="module"
)
"""Whole backups, one after another: on the gateway, which also has every call in turn, they are for the long run."""


@pytest.fixture(scope="module", params=["s3_primary", "ceph"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.endpoint_url) as between:
        yield between


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once, so that hundreds can be watched; their delays have a test of their own."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.001)


def through(proxy: FaultyProxy, server: Server, name: str, *, patience: timedelta = PATIENCE) -> Bucket:
    return Bucket(server.session(), name, region=server.region, endpoint_url=proxy.endpoint_url, stall_limit=patience)


def hit(number: int, fault: Fault, *, lasting: bool = False) -> Callable[[Call], Fault | None]:
    """The fault at call `number`; or at it and at every one after it."""
    return lambda call: fault if call.number == number or (lasting and call.number > number) else None


# One verb at a time


def write_in_parts(bucket: Bucket) -> bytes:
    content = random.Random(1).randbytes(5 * MIB + 1)
    with Upload(bucket, "parts", part_bytes=5 * MIB, in_flight=2) as upload:
        upload.write(content)
        upload.complete()
    return content


def check_put(bucket: Bucket, direct: Bucket) -> None:
    bucket.put("put", b"body")
    assert direct.read("put") == b"body"


def check_create(bucket: Bucket, direct: Bucket) -> None:
    key = f"create-{secrets.token_hex(8)}"
    bucket.create(key, b"ours")
    assert direct.read_oldest(key) == b"ours"


def check_upload(bucket: Bucket, direct: Bucket) -> None:
    content = write_in_parts(bucket)
    assert direct.read("parts") == content


def check_read(bucket: Bucket, direct: Bucket) -> None:
    assert bucket.read("large") == direct.read("large")


def check_read_range(bucket: Bucket, direct: Bucket) -> None:
    assert bucket.read_range("large", 1000, 2 * MIB) == direct.read("large")[1000 : 2 * MIB]


def check_open_version(bucket: Bucket, direct: Bucket) -> None:
    (version,) = direct.versions("large")
    _, content = bucket.open_version("large", version_id=version.version_id, etag=version.etag, chunk_bytes=1 << 16)
    assert b"".join(content) == direct.read("large")


def check_listings(bucket: Bucket, direct: Bucket) -> None:
    assert list(bucket.keys("")) == list(direct.keys(""))
    assert list(bucket.versions("")) == list(direct.versions(""))


def check_looks(bucket: Bucket, direct: Bucket) -> None:
    assert bucket.size("large") == 3 * MIB
    assert bucket.is_versioned()
    assert bucket.clock() >= next(direct.versions("large")).modified.replace(microsecond=0)
    assert bucket.tags("large") == {}


VERBS = [
    check_put,
    check_create,
    check_upload,
    check_read,
    check_read_range,
    check_open_version,
    check_listings,
    check_looks,
]


@pytest.fixture(scope="module")
def filled(server: Server) -> str:
    name = server.create_bucket(f"faults-{secrets.token_hex(4)}")
    bucket = Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)
    bucket.put("large", random.Random(2).randbytes(3 * MIB))
    return name


def verbs_calls(proxy: FaultyProxy, bucket: Bucket, direct: Bucket, verb: Callable[[Bucket, Bucket], None]) -> int:
    proxy.fault, proxy.calls = (lambda _: None), []
    verb(bucket, direct)
    return len(proxy.calls)


@pytest.mark.requirement("R4.4")
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__.removeprefix("check_"))
def test_a_fault_at_any_call_of_a_verb_is_mended_by_trying_again(
    server: Server, proxy: FaultyProxy, filled: str, verb: Callable[[Bucket, Bucket], None]
) -> None:
    direct = Bucket(server.session(), filled, region=server.region, endpoint_url=server.endpoint_url)
    bucket = through(proxy, server, filled)
    calls = verbs_calls(proxy, bucket, direct, verb)
    assert calls

    for fault in (Fault.SLOW_DOWN, Fault.CUT, Fault.DENIED_AFTERWARDS, Fault.LOST, Fault.HALF):
        for number in range(1, calls + 1):
            proxy.fault, proxy.calls = hit(number, fault), []
            verb(bucket, direct)
            assert len(proxy.calls) >= number, f"{fault} at {number} hit nothing"


@pytest.mark.parametrize("verb", [check_put, check_read], ids=lambda verb: verb.__name__.removeprefix("check_"))
def test_an_answer_that_never_comes_is_not_waited_for(
    server: Server, proxy: FaultyProxy, filled: str, verb: Callable[[Bucket, Bucket], None]
) -> None:
    direct = Bucket(server.session(), filled, region=server.region, endpoint_url=server.endpoint_url)
    proxy.fault, proxy.calls = hit(1, Fault.SILENCE), []
    verb(through(proxy, server, filled, patience=timedelta(seconds=1)), direct)

    assert len(proxy.calls) >= 2


@pytest.mark.parametrize("fault", [fault for fault in MENDED if fault is not Fault.SILENCE])
def test_a_store_that_goes_on_failing_is_given_up_and_the_error_says_how_often_it_was_tried(
    server: Server, proxy: FaultyProxy, filled: str, fault: Fault
) -> None:
    proxy.fault, proxy.calls = hit(1, fault, lasting=True), []
    with pytest.raises(StoreError, match=rf"s3://{filled}/large.*tried (6 times|once)") as failed:
        through(proxy, server, filled).read("large")

    assert 3 <= len(proxy.calls) <= 6
    assert "look at" in failed.value.mend or "reachable" in failed.value.mend


def test_tries_are_a_growing_random_time_apart_and_all_of_them_within_the_limit(
    server: Server, proxy: FaultyProxy, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    waited: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", waited.append)
    bucket = through(proxy, server, filled, patience=timedelta(minutes=5))
    for _ in range(10):
        proxy.fault, proxy.calls = hit(1, Fault.SLOW_DOWN, lasting=True), []
        with pytest.raises(StoreError, match="SlowDown"):
            bucket.read("large")

    assert len(set(waited)) == len(waited) == 10 * 5
    assert all(wait <= 2 ** (number % 5) for number, wait in enumerate(waited)), waited
    assert sum(waited[4::5]) > sum(waited[0::5])
    settings = bucket.client.meta.config
    assert 6 * (settings.connect_timeout + settings.read_timeout) + sum(2**turn for turn in range(5)) <= 300


def test_a_completion_whose_answer_was_lost_is_found_to_have_happened(
    server: Server, proxy: FaultyProxy, filled: str
) -> None:
    """Ceph forgets the upload, and the client's own second try is told that there is none; ministack remembers."""
    proxy.calls = []
    proxy.fault = lambda call: Fault.LOST if call.method == "POST" and is_first_completion(proxy, call) else None
    content = write_in_parts(through(proxy, server, filled))

    direct = Bucket(server.session(), filled, region=server.region, endpoint_url=server.endpoint_url)
    assert direct.read("parts") == content
    assert sum(call.method == "POST" and "uploadId" in call.path for call in proxy.calls) == 2


def is_first_completion(proxy: FaultyProxy, call: Call) -> bool:
    completions = [each.number for each in proxy.calls if each.method == "POST" and "uploadId" in each.path]
    return completions == [call.number]


def test_a_completion_that_did_not_happen_is_not_believed(server: Server, filled: str) -> None:
    """The upload is gone and what lies there is not what was sent."""
    bucket = Bucket(server.session(), filled, region=server.region, endpoint_url=server.endpoint_url)
    bucket.put("parts", b"another's")
    with pytest.raises(StoreError, match="/parts"), Upload(bucket, "parts", part_bytes=5 * MIB, in_flight=1) as upload:
        upload.write(bytes(6 * MIB))
        bucket.client.abort_multipart_upload(Bucket=filled, Key="parts", UploadId=upload._upload_id or "")
        upload.complete()
    assert bucket.read("parts") == b"another's"


def test_a_creation_that_meets_anothers_is_still_refused(server: Server, proxy: FaultyProxy, filled: str) -> None:
    if isinstance(server, CephGateway):
        expected: type[Exception] | None = None  # it ignores If-None-Match: the oldest version tells
    else:
        expected = ObjectExists
    proxy.fault, proxy.calls = hit(1, Fault.LOST), []
    bucket = through(proxy, server, filled)
    bucket.create("contested", b"first")
    if expected:
        with pytest.raises(expected):
            bucket.create("contested", b"second")
    else:
        bucket.create("contested", b"second")
    assert bucket.read_oldest("contested") == b"first"


def test_an_answer_that_is_too_short_is_noticed(server: Server, proxy: FaultyProxy, filled: str) -> None:
    """A listing that is cut is no XML and asked for again; a body that is, has not the length that was asked for."""
    bucket = through(proxy, server, filled)
    proxy.fault, proxy.calls = hit(1, Fault.SHORT), []
    with pytest.raises(StoreError, match="/large"):
        bucket.read_range("large", 0, MIB)
    proxy.fault, proxy.calls = hit(1, Fault.SHORT), []
    assert "large" in {version.key for version in bucket.versions("")}
    proxy.fault, proxy.calls = hit(1, Fault.SHORT, lasting=True), []
    with pytest.raises(StoreError, match="Could not list"):
        list(bucket.versions(""))


# A whole backup


@dataclass(frozen=True)
class Watched:
    """A tiny Synapse whose store is reached through the proxy, and what its backups must hold."""

    installation: Installation
    policy: Policy
    proxy: FaultyProxy
    server: Server
    objects: dict[str, Object]
    rows: dict[str, int]
    scratch: Path

    def bucket(self, name: str) -> Bucket:
        return through(self.proxy, self.server, name)

    def run(self, backup: BackupId) -> None:
        """A backup and its verification, through the proxy."""
        made = self.installation
        catalog = Catalog(self.bucket(made.backups), Keyring.load(made.keyring))
        application = replace(made.application(), objects=self.bucket(made.synapse.bucket))
        make_full_backup(
            backup, slot=None, application=application, catalog=catalog, policy=self.policy, scratch=self.scratch
        )
        check_integrity(catalog, backup, self.policy, scratch=self.scratch)

    @cached_property
    def calls(self) -> int:
        """How many calls a backup and its verification make: within a few, always as many."""
        self.proxy.fault, self.proxy.calls = (lambda _: None), []
        self.run(new_id())
        return len(self.proxy.calls)

    def attempt(self, backup: BackupId, fault: Callable[[Call], Fault | None]) -> BackupError | None:
        """Run with a fault, and judge what is left without it: green and true, or red and clean."""
        self.proxy.fault, self.proxy.calls = fault, []
        try:
            self.run(backup)
            failure = None
        except BackupError as error:
            failure = error
        assert failure is None or failure.mend
        catalog = self.installation.catalog()
        assert [entry.refused for entry in catalog.entries() if entry.refused] == []
        if failure is None or catalog.find(backup) is not None:
            self.judge(backup)
        assert {key.partition("/")[0] for key in catalog.bucket.keys("")} <= {"full", "keys", "manifests", "packs"}
        with self.installation.postgres.superuser.connect(application_name="watching") as session:
            left = session.execute(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE %s", (f"{backup}.%",)
            ).fetchall()
        assert left == []
        return failure

    def judge(self, backup: BackupId) -> None:
        """What the backup holds is what the source holds; read past the proxy."""
        catalog = self.installation.catalog()
        check_integrity(catalog, backup, self.policy, scratch=self.scratch)
        manifest = catalog.get(backup)
        opened = OpenedBackup(catalog, manifest, policy=self.policy.pipeline, progress=Progress("judging"))
        found = {
            entry.key: Object(entry.sha256, entry.headers["ContentType"], entry.metadata)
            for component in opened.object_components()
            for entry in opened.objects(component)
        }
        assert found == self.objects
        assert manifest.database.rows == sum(self.rows.values())
        assert len(manifest.artifacts) == len({artifact.name for artifact in manifest.artifacts}) >= 15


NUMBERS = iter(range(1_000_000))


def new_id() -> BackupId:
    return BackupId.parse(f"full-manual-20261122T000000.{next(NUMBERS):06d}Z")


@pytest.fixture(scope="module")
def watched(server: Server, proxy: FaultyProxy, postgres18: PostgresServer, s3_replica: S3Server) -> Iterator[Watched]:
    directory = Path(tempfile.mkdtemp(prefix="synapse-faults-"))
    directory.chmod(0o711)
    suffix = f"-faults-{secrets.token_hex(4)}"
    made = Installation.make(
        directory, postgres=postgres18, primary=server, replica=s3_replica, suffix=suffix, scale=0.001
    )
    whole = load_policy()
    # The shortest parts, so that one object in 24 goes in parts.
    policy = whole.model_copy(update={"pipeline": whole.pipeline.model_copy(update={"part_bytes": 5 * MIB})})
    state = made.synapse.fingerprint()
    tables = {name: table.rows for name, table in state.tables.items() if "monthly_usage" not in name}
    yield Watched(made, policy, proxy, server, dict(state.objects), tables, directory)
    made.synapse.destroy()
    shutil.rmtree(directory)


def some(numbers: int, watched: Watched, salt: str) -> list[int]:
    calls = watched.calls
    print(f"FAULTS_SEED={SEED}: {numbers} of {calls} calls")
    return sorted(random.Random(f"{SEED}/{salt}").sample(range(1, calls + 1), min(numbers, calls)))


def fault_of(number: int, salt: str, among: list[Fault]) -> Fault:
    return random.Random(f"{SEED}/{salt}/{number}").choice(among)


@LONG_ON_THE_GATEWAY
def test_a_backup_survives_one_fault_at_any_call(watched: Watched) -> None:
    quick = [fault for fault in MENDED if fault is not Fault.SILENCE]
    for number in some(2, watched, "once"):
        fault = fault_of(number, "once", quick)
        failure = watched.attempt(new_id(), hit(number, fault))
        assert failure is None, f"{fault} at {watched.proxy.calls[number - 1]}: {failure}"


@LONG_ON_THE_GATEWAY
def test_a_backup_whose_store_fails_for_good_is_red_and_clean_and_the_next_one_green(watched: Watched) -> None:
    lasting = [Fault.FAILS, Fault.SLOW_DOWN, Fault.CUT, Fault.LOST, Fault.DENIED_AFTERWARDS, Fault.HALF]
    for number in some(1, watched, "for good"):
        fault, backup = fault_of(number, "for good", lasting), new_id()
        failure = watched.attempt(backup, hit(number, fault, lasting=True))
        assert failure is not None, f"{fault} from {number} on did nothing"
        assert watched.attempt(backup, lambda _: None) is None


@LONG_ON_THE_GATEWAY
def test_an_answer_that_lies_makes_no_false_backup(watched: Watched) -> None:
    for number in some(1, watched, "lies"):
        fault, backup = fault_of(number, "lies", [Fault.SHORT, Fault.GARBLED]), new_id()
        if watched.attempt(backup, hit(number, fault)) is not None:
            assert watched.attempt(backup, lambda _: None) is None


@pytest.mark.requirement("R4.5")
def test_an_object_that_arrives_garbled_is_not_taken_for_what_is_stored(watched: Watched) -> None:
    (key,) = (key for key in watched.objects if key.endswith("icons/1.png"))
    garbled: list[int] = []

    def once(call: Call) -> Fault | None:
        if f"{key}?versionId=" not in call.path or garbled:
            return None
        garbled.append(call.number)
        return Fault.GARBLED

    failure = watched.attempt(new_id(), once)
    assert isinstance(failure, ObjectGarbled)
    assert key in failure.what


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("lasting", [False, True])
def test_a_fault_at_every_call(watched: Watched, *, lasting: bool) -> None:
    seen: Counter[tuple[Fault, bool]] = Counter()
    for number in range(1, watched.calls + 1):
        fault, backup = fault_of(number, f"every {lasting}", list(Fault)), new_id()
        failure = watched.attempt(backup, hit(number, fault, lasting=lasting))
        seen[fault, failure is None] += 1
        assert lasting or failure is None or fault not in MENDED, f"{fault} at {number}: {failure}"
        if failure is not None:
            assert watched.attempt(backup, lambda _: None) is None, f"{fault} at {number}"
    print(seen)
    assert {fault for fault, _ in seen} == set(Fault)


@pytest.mark.parametrize("answers_lost", [1, pytest.param(1_000, marks=pytest.mark.soak)])
def test_the_manifest_is_the_backup_though_the_answer_to_it_was_lost(watched: Watched, answers_lost: int) -> None:
    """Heard in the end, it is green; never heard, the run is red, and yet committed: once, and true."""
    backup, lost = new_id(), iter(range(answers_lost))

    def lose(call: Call) -> Fault | None:
        committing = call.method == "PUT" and "/manifests/" in call.path
        return Fault.LOST if committing and next(lost, None) is not None else None

    failure = watched.attempt(backup, lose)

    catalog = watched.installation.catalog()
    versions = [each for each in catalog.bucket.versions(backup.manifest_key) if not each.deleted]
    stored = {catalog.bucket.read(each.key, version_id=each.version_id) for each in versions}
    assert (failure is None) == (answers_lost == 1)
    assert len(stored) == 1
    assert (len(versions) == 1) == isinstance(watched.server, S3Server), "only Ceph lets a second try write"
    assert catalog.get(backup).id == str(backup)
