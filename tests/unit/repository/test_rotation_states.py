"""Rotations, writers, crashes and retirements in any order: nothing that was written is lost, or disbelieved (R7.1)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from include.pipeline import keyring_file
from include.pipeline.keys import Keyring
from include.pipeline.store import ObjectExists, ObjectVersion
from include.policy import load_policy
from include.repository.envelopes import create_data_key, open_data_key
from include.repository.layout import new_attempt
from include.repository.rotation import KEY_KINDS, StillNeeded, make_keys, prove_all, retire, wrap_all

KEYS = load_policy().keys
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HANDOVER = KEYS.handover.after(BEGIN) - BEGIN
DIES = st.sampled_from([None] * 12 + [*range(11)])
"""At which system call, of the ten that a change of the file makes; half of them live."""
OWNER = "full-20261122T000000Z"


class Killed(BaseException):
    """The process is gone at this point."""


@dataclass
class MemoryBucket:
    """A bucket whose objects are written once, with the machine's clock; it dies at the call that it is told to."""

    clock: Any
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    calls_left: int = 1 << 30

    def _call(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed

    def create(self, key: str, body: bytes) -> None:
        self._call()
        if key in self.objects:
            raise ObjectExists("It exists already.", mend="-")
        self.objects[key] = (body, self.clock())

    def read(self, key: str, *, version_id: str | None = None) -> bytes:
        self._call()
        return self.objects[key][0]

    read_oldest = read

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        self._call()
        for key, (body, modified) in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectVersion(key, "v", modified, len(body), "e", deleted=False, latest=True)


@contextmanager
def killed_at(call: int | None) -> Iterator[None]:
    """Die at that system call that a change of the file makes, before it is done; leave what was done by then."""
    if call is None:
        yield
        return
    names = ("open", "fsync")
    real, left = {name: getattr(os, name) for name in names}, [call]
    real_replace = Path.replace

    def counted(function: Any) -> Any:
        def counting(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **named)

        return counting

    stand_in = type("os", (), {**{name: getattr(os, name) for name in dir(os)}})
    for name in names:
        setattr(stand_in, name, staticmethod(counted(real[name])))
    keyring_file.os = stand_in  # type: ignore[attr-defined]
    Path.replace = counted(real_replace)  # type: ignore[method-assign]
    try:
        yield
    finally:
        keyring_file.os = os  # type: ignore[attr-defined]
        Path.replace = real_replace  # type: ignore[method-assign]


@dataclass
class Worker:
    """A process that read the keyring file at a moment, and is ended before that is a handover ago."""

    keyring: Keyring
    since: datetime


class Rotations(RuleBasedStateMachine):
    """Workers write with the file that they once read; everything else happens to the file and to the bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "keyring.json"
        Keyring.create(self.path, now=self.now)
        self.bucket: Any = MemoryBucket(lambda: self.now)
        self.data_keys: dict[tuple[str, str], bytes] = {}
        self.documents: list[tuple[dict[str, int], dict[str, str]]] = []
        self.workers = [Worker(self.read(), self.now)]

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    def read(self) -> Keyring:
        return replace(Keyring.load(self.path), clock=lambda: self.now)

    @rule()
    def a_worker_starts(self) -> None:
        self.workers = [*self.workers[-3:], Worker(self.read(), self.now)]

    @rule(which=st.integers(-1, 2))
    def a_worker_writes(self, which: int) -> None:
        keyring, attempt = self.workers[which % len(self.workers)].keyring, new_attempt()
        self.data_keys[OWNER, attempt] = create_data_key(self.bucket, keyring, owner=OWNER, attempt=attempt)
        document = {"number": len(self.documents)}
        self.documents.append((document, keyring.sign(document)))

    @rule(hours=st.sampled_from([1, 24 * 6, 24 * 8, 24 * 400]))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self.workers = [each for each in self.workers if self.now - each.since < HANDOVER] or [
            Worker(self.read(), self.now)
        ]

    @rule(kinds=st.sampled_from([["kek"], ["signing"], list(KEY_KINDS)]), dies=DIES)
    def keys_are_made(self, kinds: Any, dies: int | None) -> None:
        with suppress(Killed), killed_at(dies):
            make_keys(self.path, kinds, KEYS, now=self.now)
        self.a_worker_starts()

    @rule(dies=st.none() | st.integers(0, 20))
    def the_bucket_is_wrapped(self, dies: int | None) -> None:
        self.bucket.calls_left = 1 << 30 if dies is None else dies
        try:
            with suppress(Killed):
                outcome = wrap_all(self.bucket, self.read())
                assert outcome.refused == ()
        finally:
            self.bucket.calls_left = 1 << 30

    @rule()
    def keys_are_made_and_reach_everybody(self) -> None:
        self.keys_are_made(list(KEY_KINDS), None)
        self.time_passes(24 * 8)

    @rule(which=st.integers(0, 9), dies=DIES)
    def any_key_is_retired(self, which: int, dies: int | None) -> None:
        ids = sorted(self.read().ids)
        with suppress(Killed, StillNeeded), killed_at(dies):
            retire(self.path, ids[which % len(ids)], [self.bucket], KEYS, now=self.now)

    @rule()
    def what_is_over_is_retired(self) -> None:
        keyring = self.read()
        for key in keyring.ids - {*keyring.current_keks, keyring.current_signing_key}:
            with suppress(StillNeeded):
                retire(self.path, key, [self.bucket], KEYS, now=self.now)

    @precondition(lambda self: self.data_keys)
    @rule()
    def all_is_wrapped_and_the_newest_key_is_enough(self) -> None:
        keyring = self.read()
        wrap_all(self.bucket, keyring)
        assert prove_all(self.bucket, keyring).refused == ()
        [newest] = keyring.lasting_keks
        self.must_open(replace(keyring, keks={newest: keyring.keks[newest]}))

    @invariant()
    def everything_opens_and_is_believed_by_the_file_and_by_every_worker(self) -> None:
        for keyring in (self.read(), *(worker.keyring for worker in self.workers)):
            for document, signature in self.documents:
                keyring.check(document, signature)
            self.must_open(keyring)

    def must_open(self, keyring: Keyring) -> None:
        for (owner, attempt), dek in self.data_keys.items():
            assert open_data_key(self.bucket, keyring, owner=owner, attempt=attempt) == dek


TestRotations = pytest.mark.requirement("R7.1")(Rotations.TestCase)
TestRotations.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
