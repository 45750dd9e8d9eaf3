"""The newest genuine record of each proof decides, and a backup of which one failed is in no plan (R4.5)."""

from __future__ import annotations

import base64
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.canonical import canonical_json
from include.pipeline.keys import Keyring
from include.pipeline.store import Bucket, ObjectVersion
from include.repository.catalog import Catalog, NoSuchBackup
from include.repository.manifest import Manifest, ManifestRefused
from include.repository.verification import (
    INTEGRITY,
    SAMPLE,
    SIZES,
    Record,
    RecordRefused,
    VerificationFailed,
    read_verifications,
    store_record,
)
from tests.manifests import ATTEMPT, MIDNIGHT, commit, make

BACKUP = make()


def record(*, after: float = 60, passed: bool = True, of: Manifest = BACKUP, **changes: Any) -> Record:
    """A record so many seconds after the backup's slot."""
    fields: dict[str, Any] = {
        "backup": of.id,
        "attempt": of.attempt,
        "proof": INTEGRITY,
        "passed": passed,
        "when": MIDNIGHT + timedelta(seconds=after),
        "bucket": "bucket",
        "by": "somebody@somewhere",
        "milliseconds": 5,
        "facts": {"objects": 3},
        "what": None if passed else "segment 7 was changed.",
        "mend": None if passed else "Use the replica.",
    }
    return Record(**fields | changes)


def known(catalog: Catalog, *records: Record, of: Manifest = BACKUP) -> Any:
    for each in records:
        store_record(catalog.bucket, catalog.keyring, each.model_copy(update={"bucket": catalog.bucket.name}))
    return catalog.verification(of)


# One record


def test_a_record_reads_back(keyring: Keyring) -> None:
    written = record(proof=SAMPLE, subject="user_data")

    assert Record.open(written.sealed(keyring), keyring, key=written.home) == written
    assert written.home == f"verification/{BACKUP.id}/20261122T000100.000000Z-sample-user_data-{written.nonce}.json"


def test_two_records_of_one_moment_do_not_collide_and_names_sort_by_time() -> None:
    assert record().home != record().home
    rows = [record(after=after).home for after in (0, 0.000001, 1, 59.999999, 3600, 86400)]
    assert rows == sorted(rows)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_flipped_bit_is_refused_by_name(keyring: Keyring, data: st.DataObject) -> None:
    written = record()
    stored = bytearray(written.sealed(keyring))
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordRefused, match=written.home):
        Record.open(bytes(stored), keyring, key=written.home)


def test_what_somebody_else_signed_what_was_moved_and_what_is_no_record_is_refused(
    keyring: Keyring, tmp_path: Path
) -> None:
    written = record()
    other = Keyring.create(tmp_path / "other.json")
    elsewhere = written.home.replace("integrity", "sizes")
    for stored, key in (
        (written.sealed(other), written.home),
        (written.sealed(keyring), elsewhere),
        (b"{}", written.home),
        (b"[" * 100_000, written.home),
    ):
        with pytest.raises(RecordRefused, match=key):
            Record.open(stored, keyring, key=key)


def test_a_document_of_another_kind_is_none_however_it_is_signed(keyring: Keyring) -> None:
    written = record()
    document = written.model_dump(mode="json")
    as_manifest = canonical_json({**document, "signature": keyring.sign(document)})
    with pytest.raises(RecordRefused, match="changed after it was written"):
        Record.open(as_manifest, keyring, key=written.home)
    with pytest.raises(ManifestRefused, match="changed after it was written"):
        Manifest.open(written.sealed(keyring), keyring, key=BACKUP.home)


@pytest.mark.parametrize(
    "wrong",
    [
        {"what": "x"},
        {"what": "x", "mend": "y"},
        {"mend": "y"},
        {"proof": "Integrity"},
        {"proof": "a-b"},
        {"subject": "../x"},
        {"nonce": "x"},
    ],
)
def test_a_record_that_contradicts_itself_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        record(**wrong)


# What a backup's records say together

Event = dict[str, Any]
events = st.lists(
    st.fixed_dictionaries(
        {
            "proof": st.sampled_from([(INTEGRITY, None), (SIZES, None), (SAMPLE, "billing"), (SAMPLE, "user_data")]),
            "kind": st.sampled_from(["passed", "passed", "failed", "forged", "other attempt", "other copy"]),
        }
    ),
    max_size=12,
)


class Stored:
    """Records in memory, read as from a bucket; counts what is read."""

    name = "bucket"

    def __init__(self, keyring: Keyring, history: list[Event]) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads = 0
        for number, event in enumerate(history):
            proof, subject = event["proof"]
            one = record(after=number, passed=event["kind"] != "failed", proof=proof, subject=subject)
            if event["kind"] == "other attempt":
                one = one.model_copy(update={"attempt": "f" * 16})
            if event["kind"] == "other copy":
                one = one.model_copy(update={"bucket": "replica"})
            sealed = one.sealed(keyring)
            self.objects[one.home] = sealed.replace(b"objects", b"OBJECTS") if event["kind"] == "forged" else sealed

    def read(self, key: str, *, version_id: str | None = None) -> bytes:
        self.reads += 1
        return self.objects[key]

    def listed(self, order: random.Random) -> list[ObjectVersion]:
        keys = [*self.objects, f"verification/{BACKUP.id}/README", f"verification/{make(1).id}/x"]
        order.shuffle(keys)
        moment = datetime(2026, 11, 22, tzinfo=UTC)
        return [ObjectVersion(key, "1", moment, 1, "", deleted=False, latest=True) for key in keys]


def expected(history: list[Event]) -> tuple[str, int]:
    """The state, and how many records have to be read, by the rule as the format says it, one proof after another."""
    states, reads = [], 0
    for proof in {event["proof"] for event in history}:
        verdict, doubt = None, False
        for event in reversed([event for event in history if event["proof"] == proof]):
            reads += 1
            if event["kind"] == "forged":
                doubt = True
            elif event["kind"] in ("passed", "failed") or (event["kind"] == "other copy" and proof[0] == SIZES):
                verdict = "failed" if event["kind"] == "failed" else "passed"
                break
        states.append((proof[0], verdict, doubt))
    if any(verdict == "failed" for _, verdict, _ in states):
        return "failed", reads
    if any(doubt for *_, doubt in states):
        return "in doubt", reads
    return ("verified" if (INTEGRITY, "passed", False) in states else "not yet"), reads


@pytest.mark.requirement("R4.5")
@settings(deadline=None, max_examples=300)
@given(history=events, order=st.randoms(use_true_random=False))
def test_the_newest_genuine_record_of_each_proof_decides_in_whatever_order_they_are_listed(
    keyring: Keyring, history: list[Event], order: random.Random
) -> None:
    stored = Stored(keyring, history)

    found = read_verifications(stored, keyring, [BACKUP], stored.listed(order))[BACKUP.id]  # type: ignore[arg-type]

    assert (found.state, stored.reads) == expected(history)
    assert [each.when for each in found.newest] == sorted(each.when for each in found.newest)
    if found.state == "failed":
        with pytest.raises(VerificationFailed, match="segment 7 was changed") as refused:
            found.require(BACKUP.id)
        assert found.failed[0].home in refused.value.what
    else:
        found.require(BACKUP.id)


# In a bucket


def test_a_backup_that_nobody_proved_is_not_verified_yet(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    [entry] = catalog.entries()
    assert entry.verification.state == "not yet"
    assert catalog.latest("full") == BACKUP


@pytest.mark.requirement("R4.5", "R6.4")
def test_the_latest_passes_over_what_failed_and_says_so(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = commit(catalog, make(0)), commit(catalog, make(1))
    failed = record(passed=False, of=newer)
    assert known(catalog, record(of=newer), failed.model_copy(update={"when": MIDNIGHT + timedelta(days=2)}), of=newer)

    with caplog.at_level(logging.WARNING):
        assert catalog.latest("full") == older
    assert f"{newer.id} is passed over" in caplog.text
    assert "segment 7 was changed" in caplog.text
    assert [entry.verification.state for entry in catalog.entries("full")] == ["not yet", "failed"]

    again = record(of=newer, after=3 * 86400)
    assert known(catalog, again, of=newer).state == "verified"
    assert catalog.latest("full") == newer


def test_one_failed_proof_is_enough_and_another_proofs_success_lifts_nothing(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    failed = record(passed=False, proof=SAMPLE, subject="billing")
    assert known(catalog, record(), failed).state == "failed"
    others = [record(after=90), record(after=91, proof=SIZES), record(after=92, proof=SAMPLE, subject="user_data")]
    assert known(catalog, *others).failed == (failed.model_copy(update={"bucket": catalog.bucket.name}),)
    assert known(catalog, record(after=93, proof=SAMPLE, subject="billing")).state == "verified"


def test_when_every_backup_failed_there_is_no_latest(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    known(catalog, record(passed=False))
    with pytest.raises(NoSuchBackup, match=r"Every full backup .* failed") as none:
        catalog.latest("full")
    assert "--despite-verification" in none.value.mend


def test_a_forged_record_lifts_nothing_hides_nothing_and_condemns_nothing(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    commit(catalog, BACKUP)
    assert known(catalog, record(passed=False)).state == "failed"
    forged = record(after=120).home
    catalog.bucket.put(forged, record(after=120).sealed(catalog.keyring))  # of another nonce: moved here
    assert catalog.verification(BACKUP).state == "failed"

    known(catalog, record(after=90))
    doubtful = catalog.verification(BACKUP)
    assert (doubtful.state, len(doubtful.refused)) == ("in doubt", 1)
    assert forged in doubtful.refused[0]
    with caplog.at_level(logging.WARNING):
        assert catalog.latest("full") == BACKUP
    assert forged in caplog.text
    assert known(catalog, record(after=150)).state == "verified"


def test_neither_a_marker_nor_a_later_version_changes_what_was_recorded(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    failed = record(passed=False, bucket=catalog.bucket.name)
    known(catalog, failed)
    catalog.bucket.put(failed.home, b"{}")
    catalog.bucket.delete(failed.home)
    assert catalog.verification(BACKUP).failed == (failed,)


def test_a_record_that_is_there_already_is_not_written_over(catalog: Catalog) -> None:
    one = record(bucket=catalog.bucket.name)
    store_record(catalog.bucket, catalog.keyring, one)
    with pytest.raises(Exception, match="exists already"):
        store_record(catalog.bucket, catalog.keyring, one.model_copy(update={"milliseconds": 6}))


def test_of_more_records_than_a_page_lists_only_the_newest_are_read(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = [commit(catalog, make(day)) for day in range(2)]
    older = [record(of=manifests[0], after=-after).home for after in range(1, 1002)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: catalog.bucket.put(key, b"never read"), older))
    for manifest in manifests:
        known(catalog, *(record(of=manifest, after=after) for after in range(3)), of=manifest)
    reads: list[str] = []
    read = Bucket.read

    def counted(bucket: Bucket, key: str, *, version_id: str | None = None) -> bytes:
        reads.append(key)
        return read(bucket, key, version_id=version_id)

    monkeypatch.setattr(Bucket, "read", counted)
    assert [entry.verification.state for entry in catalog.entries()] == ["verified"] * 2
    assert len([key for key in reads if key.startswith("verification/")]) == 2


def test_the_history_of_a_proof_is_its_genuine_records_newest_first(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    known(catalog, record(proof=SIZES), record(proof=SIZES, after=61, because="purged"), record())
    catalog.bucket.put(record(proof=SIZES, after=62).home, b"{}")
    assert [each.because for each in catalog.history(BACKUP, SIZES)] == ["purged", None]


def test_a_keyring_that_only_reads_still_judges(catalog: Catalog) -> None:
    commit(catalog, BACKUP)
    known(catalog, record(passed=False))
    ring = catalog.keyring
    public = {name: replace(key, private=None) for name, key in ring.signing_keys.items()}
    assert Catalog(catalog.bucket, replace(ring, signing_keys=public)).verification(BACKUP).state == "failed"


def test_what_is_stored_has_no_floating_point(keyring: Keyring) -> None:
    def refuse(text: str) -> float:
        raise AssertionError(text)

    stored = record().sealed(keyring)
    assert json.loads(stored, parse_float=refuse)["attempt"] == ATTEMPT


def test_a_stranger_can_prove_a_record_with_the_format_and_a_public_key_alone(keyring: Keyring) -> None:
    written = record(proof=SAMPLE, subject="user_data")
    document = json.loads(written.sealed(keyring))
    signature = document.pop("signature")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    keyring.signing_keys[signature["key"]].public.verify(
        base64.b64decode(signature["ed25519"]), b"synapse-backups verification record 1\n" + canonical
    )
    when = datetime.fromisoformat(document["when"]).strftime("%Y%m%dT%H%M%S.%fZ")
    name = f"{when}-{document['proof']}-{document['subject']}-{document['nonce']}.json"
    assert f"verification/{document['backup']}/{name}" == written.home
