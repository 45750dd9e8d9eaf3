"""WAL in the bucket: what is shipped comes back, and what is not that segment is refused by name."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from include.pipeline.sealing import Sealer, StreamRefused
from include.policy import load_policy
from include.repository.catalog import Catalog
from include.repository.envelopes import open_data_key
from include.repository.layout import wal_owner
from include.repository.lsn import Lsn, segment_lsn, segment_name, timeline_of
from include.repository.manifest import WalFile
from include.repository.wal import WalArchive, WalRefused
from tests.damage import flip

SYSTEM, SIZE = "7381000000000000001", 1 << 20
FIRST, SECOND = (segment_name(1, Lsn(number * SIZE), SIZE) for number in (3, 4))


@pytest.fixture
def archive(catalog: Catalog) -> WalArchive:
    return WalArchive(catalog.bucket, catalog.keyring, SYSTEM, policy=load_policy().pipeline)


def segment(directory: Path, name: str, *, system: str = SYSTEM, timeline: int | None = None, size: int = SIZE) -> Path:
    """A file that begins as that segment does, with content that shrinks to half."""
    at = segment_lsn(name, SIZE)
    header = struct.pack("=HHIQI4xQII", 0xD118, 2, timeline or timeline_of(name), at, 0, int(system), size, 8192)
    half = random.Random(name).randbytes(SIZE // 2)
    file = directory / f"{name}-{system}-{timeline}-{size}"
    file.write_bytes(header + half + bytes(SIZE - len(header) - len(half)))
    return file


def test_what_is_shipped_comes_back(archive: WalArchive, tmp_path: Path) -> None:
    file, session = segment(tmp_path, FIRST), archive.session()
    history = tmp_path / "00000002.history"
    history.write_text("1\t0/300000\tno recovery target specified\n")
    shipped, told = session.ship(file, FIRST), session.ship(history, history.name)
    assert (shipped.raw_bytes, shipped.stored_bytes < 0.6 * SIZE) == (SIZE, True)
    # Another reader, with nothing but the bucket and the keyring.
    reader = WalArchive(archive.bucket, archive.keyring, SYSTEM, policy=load_policy().pipeline)
    found = reader.shipped()
    assert {name: [copy.attempt for copy in copies] for name, copies in found.items()} == {
        FIRST: [session.attempt],
        history.name: [session.attempt],
    }
    assert reader.measure(found[FIRST][0]) == shipped
    assert b"".join(reader.read(told)) == history.read_bytes()
    reader.fetch(shipped, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_two_sessions_ship_the_same_segment_and_neither_minds(archive: WalArchive, tmp_path: Path) -> None:
    file = segment(tmp_path, FIRST)
    copies = [archive.session().ship(file, FIRST) for _ in range(2)]
    found = archive.shipped()[FIRST]
    assert {copy.attempt for copy in found} == {copy.attempt for copy in copies}
    assert {archive.measure(copy).raw_sha256 for copy in found} == {copies[0].raw_sha256}


def test_of_a_long_log_only_what_is_asked_for_is_listed(archive: WalArchive, tmp_path: Path) -> None:
    session, history = archive.session(), tmp_path / "00000003.history"
    history.write_text("1\t0/300000\tno recovery target specified\n")
    names = [segment_name(timeline, Lsn(number * SIZE), SIZE) for timeline in (1, 3) for number in (0xF, 0x10, 0x11)]
    for name in names:
        session.ship(segment(tmp_path, name), name)
    session.ship(history, history.name)
    assert set(archive.shipped()) == {*names, history.name}
    for wanted in ([], names[1:3], [names[0], names[5]], [names[4], history.name, "00000004.history"]):
        assert set(archive.shipped(wanted)) == {*wanted} - {"00000004.history"}


def test_a_flipped_bit_is_found_and_nothing_is_left_in_place(archive: WalArchive, tmp_path: Path) -> None:
    shipped = archive.session().ship(segment(tmp_path, FIRST), FIRST)
    flip(archive.bucket, archive.key_of(shipped))
    with pytest.raises(StreamRefused, match=FIRST):
        archive.fetch(shipped, tmp_path / "back")
    assert not [path for path in tmp_path.iterdir() if "back" in path.name]


def test_a_copy_that_is_gone_is_named(archive: WalArchive, tmp_path: Path) -> None:
    shipped = archive.session().ship(segment(tmp_path, FIRST), FIRST)
    archive.bucket.delete(archive.key_of(shipped))
    with pytest.raises(StreamRefused, match=FIRST):
        archive.measure(archive.shipped()[FIRST][0])


def test_a_segment_in_another_s_place_does_not_open(archive: WalArchive, tmp_path: Path) -> None:
    session = archive.session()
    first, second = (session.ship(segment(tmp_path, name), name) for name in (FIRST, SECOND))
    archive.bucket.put(archive.key_of(first), archive.bucket.read(archive.key_of(second)))
    with pytest.raises(StreamRefused, match=FIRST):
        archive.measure(archive.shipped()[FIRST][0])


def test_a_whole_stream_that_is_not_the_manifest_s_is_refused(archive: WalArchive, tmp_path: Path) -> None:
    shipped = archive.session().ship(segment(tmp_path, FIRST), FIRST)
    other = WalFile(**{**shipped.model_dump(), "raw_sha256": "0" * 64})
    with pytest.raises(StreamRefused, match="not the one that its manifest names"):
        list(archive.read(other))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"system": "7381000000000000002"}, "of the cluster 7381000000000000002, not of"),
        ({"timeline": 2}, "of timeline 2, not of 1"),
        ({"size": 2 * SIZE}, "its cluster's segments have 2097152"),
    ],
)
def test_what_is_not_that_segment_is_never_shipped(
    archive: WalArchive, tmp_path: Path, wrong: dict[str, object], words: str
) -> None:
    file = segment(tmp_path, FIRST, **wrong)  # type: ignore[arg-type]
    with pytest.raises(WalRefused, match=words):
        archive.session().ship(file, FIRST)
    with pytest.raises(WalRefused, match="holds the log from 0/300000 on, not from 0/400000"):
        archive.session().ship(segment(tmp_path, FIRST), SECOND)
    assert archive.shipped() == {}


def test_a_sealed_stream_that_is_not_its_name_s_segment_is_refused(archive: WalArchive, tmp_path: Path) -> None:
    """Under the right key and at the right place, as only a broken shipper could put it there."""
    session = archive.session()
    shipped = session.ship(segment(tmp_path, FIRST), FIRST)
    key = open_data_key(archive.bucket, archive.keyring, owner=wal_owner(SYSTEM), attempt=session.attempt)
    sealer = Sealer(key, archive.context_of(FIRST, session.attempt), level=1)
    foreign = segment(tmp_path, FIRST, system="7381000000000000002").read_bytes()
    archive.bucket.put(archive.key_of(shipped), sealer.add(foreign) + sealer.finish())
    with pytest.raises(WalRefused, match=rf"{FIRST}.* is of the cluster 7381000000000000002"):
        archive.measure(archive.shipped()[FIRST][0])


def test_a_history_below_its_own_timeline_s_first_segment_is_older(archive: WalArchive, tmp_path: Path) -> None:
    """A timeline's first segment begins with a copy of its ancestor's pages, whose headers say so."""
    name = segment_name(2, Lsn(3 * SIZE), SIZE)
    shipped = archive.session().ship(segment(tmp_path, name, timeline=1), name)
    assert archive.measure(archive.shipped()[name][0]) == shipped
