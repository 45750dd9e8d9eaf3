"""The bucket's verbs on a real server: conditional writes, long listings, versions, checksums."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session
from botocore.stub import Stubber

from include.pipeline.store import (
    Bucket,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from include.pipeline.transfer import Upload, fetch_ranges
from include.sandbox.s3 import S3Server

MIB = 1 << 20
SECOND = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def store(s3_primary: S3Server, bucket: str) -> Bucket:
    return open_bucket(s3_primary, bucket)


def open_bucket(server: S3Server, name: str) -> Bucket:
    return Bucket(server.session(), name, region=server.region, endpoint_url=server.endpoint_url)


def unfinished(store: Bucket) -> list[Any]:
    return list(store.client.list_multipart_uploads(Bucket=store.name).get("Uploads", []))


def upload(store: Bucket, *, in_flight: int = 2) -> Upload:
    return Upload(store, "object", part_bytes=5 * MIB, in_flight=in_flight)


# Small objects


def test_an_object_is_created_once(store: Bucket) -> None:
    store.create("key", b"first")
    with pytest.raises(ObjectExists, match=r"s3://.*/key: it exists already"):
        store.create("key", b"second")
    assert store.read("key") == b"first"


def test_of_two_that_create_at_once_one_wins(store: Bucket) -> None:
    def create(body: bytes) -> bytes | None:
        try:
            store.create("key", body)
        except ObjectExists:
            return None
        return body

    with ThreadPoolExecutor(8) as pool:
        winners = [body for body in pool.map(create, [bytes([n]) for n in range(8)]) if body]
    assert winners == [store.read_oldest("key")]


def test_an_answer_that_was_lost_is_not_mistaken_for_another_writer(store: Bucket) -> None:
    """The first try reaches the store and its answer does not reach us; the client's own retry finds our bytes."""
    sent: list[int] = []

    def lose_the_first_answer(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        answer = URLLib3Session().send(request) if not sent else None
        sent.append(answer.status_code if answer else 0)
        return AWSResponse(request.url, 503, {}, _Nothing()) if answer else None

    store.client.meta.events.register("before-send.s3.PutObject", lose_the_first_answer)
    store.create("key", b"ours")

    assert sent == [200, 0]
    assert store.read("key") == b"ours"


class _Nothing:
    def stream(self, **_: object) -> Iterator[bytes]:
        return iter([b""])

    def read(self) -> bytes:
        return b""


def test_a_busy_store_is_asked_again_and_not_for_ever(store: Bucket) -> None:
    with Stubber(store.client) as stub:
        stub.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        stub.add_response("put_object", {})
        store.create("key", b"body")
        for _ in range(3):
            stub.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        with pytest.raises(StoreError, match="another writer"):
            store.create("key", b"body")
        stub.assert_no_pending_responses()


def test_a_body_that_changes_on_its_way_is_refused_by_the_store(store: Bucket) -> None:
    corrupt_bodies(store, "PutObject")
    with pytest.raises(StoreError, match=r"Could not write s3://.*/key"):
        store.put("key", b"the body as it was sent")
    assert list(store.keys("")) == []


def corrupt_bodies(store: Bucket, operation: str) -> None:
    def corrupt(request: AWSPreparedRequest, **_: object) -> None:
        body = request.body if isinstance(request.body, bytes) else request.body.read()
        request.body = bytes([body[0] ^ 1]) + body[1:]

    store.client.meta.events.register(f"before-send.s3.{operation}", corrupt)


def test_the_oldest_version_counts_whatever_came_later(store: Bucket) -> None:
    for body in (b"first", b"second"):
        store.put("key", body)
    store.put("key-longer", b"another")
    store.delete("key")

    assert store.read_oldest("key") == b"first"
    with pytest.raises(ObjectMissing, match="/key"):
        store.read("key")


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.read("absent"),
        lambda store: store.read_oldest("absent"),
        lambda store: store.read_range("absent", 0, 1),
        lambda store: store.size("absent"),
    ],
)
def test_an_absent_object_is_named(store: Bucket, ask: Callable[[Bucket], object]) -> None:
    with pytest.raises(ObjectMissing, match=f"s3://{store.name}/absent"):
        ask(store)


def test_a_range_that_the_object_does_not_have_is_an_error(store: Bucket) -> None:
    store.put("key", b"0123456789")

    assert store.read_range("key", 2, 5) == b"234"
    for start, end in ((5, 11), (10, 12)):
        with pytest.raises(StoreError, match="/key"):
            store.read_range("key", start, end)


def test_a_version_that_is_not_the_listed_one_is_refused(store: Bucket) -> None:
    store.put("key", b"body")
    (version,) = store.versions("key")
    _, content = store.open_version("key", version_id=version.version_id, etag=version.etag)

    assert b"".join(content) == b"body"
    with pytest.raises(ObjectChanged, match="/key"):
        store.open_version("key", version_id=version.version_id, etag='"0"')


def test_no_error_holds_a_credential(s3_primary: S3Server, bucket: str) -> None:
    store = open_bucket(s3_primary, bucket)
    credentials = s3_primary.session().get_credentials()
    wrong = Bucket(s3_primary.session(), "no-such-bucket", region="eu-west-1", endpoint_url=s3_primary.endpoint_url)
    nobody = Bucket(s3_primary.session(), bucket, region="eu-west-1", endpoint_url="http://127.0.0.1:9")
    nobody.client.meta.events.register("before-send.s3", _refuse)
    for ask in (lambda: list(wrong.keys("")), lambda: nobody.read("key"), lambda: store.read("absent")):
        with pytest.raises(StoreError) as failed:
            ask()
        assert credentials.secret_key not in f"{failed.value!r}{failed.value.mend}"
        assert credentials.access_key not in f"{failed.value!r}{failed.value.mend}"


def _refuse(request: AWSPreparedRequest, **_: object) -> AWSResponse:
    return AWSResponse(request.url, 403, {}, _Nothing())


# Listings


def test_a_child_process_reaches_the_same_store_by_its_variables(store: Bucket) -> None:
    store.put("key", b"content")
    program = f"import boto3; print(boto3.client('s3').get_object(Bucket='{store.name}', Key='key')['Body'].read())"
    variables = store.environment()
    assert variables["AWS_REGION"] == "eu-west-1"
    assert "AWS_SESSION_TOKEN" not in variables
    told = subprocess.run(
        [sys.executable, "-c", program], env={**variables}, capture_output=True, check=True, text=True
    )
    assert told.stdout.strip() == "b'content'"


def test_a_child_process_gets_what_the_session_has_beyond_its_keys() -> None:
    inner = botocore.session.get_session()
    inner.set_config_variable("ca_bundle", "/etc/authority.pem")
    session = boto3.Session("key", "secret", "token", region_name="us-east-1", botocore_session=inner)
    assert Bucket(session, "bucket").environment() == {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
        "AWS_REGION": "us-east-1",
        "AWS_CA_BUNDLE": "/etc/authority.pem",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def test_listings_go_on_beyond_their_first_thousand(store: Bucket) -> None:
    keys = [f"many/{number:04d}" for number in range(1_100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))

    assert list(store.keys("many/")) == keys
    assert [version.key for version in store.versions("many/")] == keys


def test_versions_come_by_key_and_newest_first(store: Bucket) -> None:
    for body in (b"1", b"22"):
        store.put("a", body)
    store.delete("a")
    store.put("a", b"333")
    store.put("b", b"")

    told = [(version.key, version.size, version.deleted, version.latest) for version in store.versions("")]
    assert told == [
        ("a", 3, False, True),
        ("a", 0, True, False),
        ("a", 2, False, False),
        ("a", 1, False, False),
        ("b", 0, False, True),
    ]


def test_within_a_second_the_latest_goes_first_and_a_marker_last(store: Bucket) -> None:
    """AWS tells versions and markers as two lists, and whole seconds."""
    page = {
        "Versions": [listed("new", 0, latest=True), listed("old", 0), listed("older", -1)],
        "DeleteMarkers": [{key: value for key, value in listed("marker", 0).items() if key not in {"Size", "ETag"}}],
    }
    with Stubber(store.client) as stub:
        stub.add_response("list_object_versions", page)
        found = list(store.versions(""))

    assert [version.version_id for version in found] == ["new", "old", "marker", "older"]
    assert [version.deleted for version in found] == [False, False, True, False]


def test_within_a_second_a_marker_that_is_the_latest_goes_first(store: Bucket) -> None:
    marker = {key: value for key, value in listed("marker", 0, latest=True).items() if key not in {"Size", "ETag"}}
    with Stubber(store.client) as stub:
        stub.add_response("list_object_versions", {"Versions": [listed("old", 0)], "DeleteMarkers": [marker]})
        found = list(store.versions(""))

    assert [version.version_id for version in found] == ["marker", "old"]


def listed(version: str, seconds: int, *, latest: bool = False) -> dict[str, Any]:
    return {
        "Key": "key",
        "VersionId": version,
        "LastModified": SECOND + timedelta(seconds=seconds),
        "IsLatest": latest,
        "Size": 1,
        "ETag": '"e"',
    }


def test_the_stores_clock_is_aware_and_near(store: Bucket) -> None:
    assert abs(store.clock() - datetime.now(UTC)) < timedelta(seconds=5)
    assert store.clock().microsecond == 0


# Uploads


def test_an_upload_in_parts_reads_back(store: Bucket) -> None:
    content = secrets.token_bytes(12 * MIB + 1)
    with upload(store) as writing:
        for start in range(0, len(content), MIB):
            writing.write(content[start : start + MIB])
        writing.complete()
    ranges = [("object", start, min(start + 5_000_000, len(content))) for start in range(0, len(content), 5_000_000)]

    assert b"".join(fetch_ranges(store, iter(ranges), in_flight=2)) == content
    assert unfinished(store) == []


def test_an_upload_that_is_left_unfinished_leaves_nothing(store: Bucket) -> None:
    with pytest.raises(ZeroDivisionError), upload(store) as writing:
        writing.write(bytes(11 * MIB))
        raise ZeroDivisionError

    assert list(store.keys("")) == []
    assert unfinished(store) == []


def test_a_part_that_changes_on_its_way_fails_the_upload(store: Bucket) -> None:
    corrupt_bodies(store, "UploadPart")
    with pytest.raises(StoreError, match=r"Could not write s3://.*/object"), upload(store, in_flight=1) as writing:
        for _ in range(4):
            writing.write(bytes(5 * MIB))
        writing.complete()

    assert list(store.keys("")) == []
    assert unfinished(store) == []


def test_ranges_come_in_order_and_no_more_than_asked_are_on_their_way() -> None:
    asked: list[int] = []

    class Counting:
        def read_range(self, key: str, start: int, end: int) -> bytes:
            asked.append(start)
            return bytes([start])

    fetched = fetch_ranges(Counting(), iter([("key", n, n + 1) for n in range(100)]), in_flight=3)
    first = next(fetched)
    ahead = len(asked)

    assert first + b"".join(fetched) == bytes(range(100))
    assert ahead <= 4


def test_an_abandoned_fetch_waits_for_no_request() -> None:
    """The garbage collector may end it while this very thread holds what the request needs to come to its end."""
    held = threading.Event()

    class Held:
        def read_range(self, key: str, start: int, end: int) -> bytes:
            if start:
                held.wait(60)
            return b"x"

    fetched = fetch_ranges(Held(), iter([("key", n, n + 1) for n in range(9)]), in_flight=2)
    assert next(fetched) == b"x"
    ending = threading.Thread(target=fetched.close, daemon=True)
    ending.start()
    ending.join(10)
    try:
        assert not ending.is_alive()
    finally:
        held.set()


class CutProxy:
    """Passes bytes on between a client and the store, and cuts the first answers of which it saw so many bytes."""

    def __init__(self, port: int, *, cuts: int, after: int) -> None:
        self._store, self._cuts, self._after = ("127.0.0.1", port), cuts, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._store) as store:
            requests = threading.Thread(target=_copy, args=(client, store), daemon=True)
            requests.start()
            seen = 0
            while chunk := store.recv(65536):
                seen += len(chunk)
                if seen > self._after and self.cut < self._cuts:
                    self.cut += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(chunk)

    def close(self) -> None:
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)


@pytest.mark.parametrize(("cuts", "arrives"), [(2, True), (3, False)])
def test_an_answer_that_is_cut_on_its_way_is_asked_for_again(
    s3_primary: S3Server, bucket: str, *, cuts: int, arrives: bool
) -> None:
    content = secrets.token_bytes(2_000_000)
    open_bucket(s3_primary, bucket).put("large", content)
    proxy = CutProxy(s3_primary.port, cuts=cuts, after=500_000)
    with contextlib.closing(proxy):
        through = Bucket(s3_primary.session(), bucket, endpoint_url=f"http://127.0.0.1:{proxy.port}")
        if arrives:
            assert through.read_range("large", 0, len(content)) == content
        else:
            with pytest.raises(StoreError, match="large"):
                through.read_range("large", 0, len(content))
    assert proxy.cut == cuts
