"""The scanner sees in a passing tar what `tarfile` reads out of a whole one."""

from __future__ import annotations

import io
import itertools
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.repository.lsn import Lsn
from include.sources.postgres.basebackup import (
    BLOCK,
    BaseBackupRefused,
    BaseRange,
    FileEntry,
    TarScanner,
    wal_range,
)

KINDS = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink"}
RANGES = [{"Timeline": 1, "Start-LSN": "0/6000028", "End-LSN": "0/6000120"}]

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=24).filter(
    lambda name: name not in {".", ".."} and not name.isspace()
)
members = st.lists(
    st.tuples(names, st.sampled_from(sorted(KINDS)), st.binary(max_size=2000), st.integers(0, 0o7777)), max_size=6
)


def archive(*files: tuple[str, bytes, bytes, int]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind, content, mode in files:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, mode, 1_700_000_000
            info.linkname = "/somewhere/else" if kind == tarfile.SYMTYPE else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def file(name: str, content: bytes) -> tuple[str, bytes, bytes, int]:
    return name, tarfile.REGTYPE, content, 0o600


def manifest(ranges: list[dict[str, object]], files: int = 0) -> bytes:
    listed = [{"Path": f"base/5/{number}", "Checksum": "00000000"} for number in range(files)]
    document = {"PostgreSQL-Backup-Manifest-Version": 1, "Files": listed, "WAL-Ranges": ranges, "Manifest-Checksum": ""}
    return json.dumps(document, indent=1).encode()


def scan(raw: bytes, *cuts: int) -> tuple[list[FileEntry], TarScanner]:
    found: list[FileEntry] = []
    scanner = TarScanner(found.append)
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    chunks = [raw[start:end] for start, end in itertools.pairwise(edges)]
    assert b"".join(scanner.passing(iter(chunks))) == raw
    return found, scanner


@given(members, st.lists(st.integers(0, 100_000), max_size=8))
def test_every_member_is_found_wherever_the_chunks_end(
    files: list[tuple[str, bytes, bytes, int]], cuts: list[int]
) -> None:
    raw = archive(*files)
    found, _ = scan(raw, *cuts)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        expected = [
            FileEntry(m.name, KINDS[m.type], m.mode, m.size, int(m.mtime), m.offset_data, m.linkname or None)
            for m in tar.getmembers()
        ]
    assert found == expected


@given(st.data())
def test_a_tar_that_breaks_off_anywhere_is_refused(data: st.DataObject) -> None:
    raw = archive(file("backup_label", b"START"), file("PG_VERSION", b"18\n"))
    end = 4 * BLOCK + 2 * BLOCK  # what tarfile pads with behind it is not needed
    cut = data.draw(st.integers(0, end - 1))
    with pytest.raises(BaseBackupRefused, match=f"breaks off after {cut} bytes"):
        scan(raw[:cut])
    scan(raw[:end])


@given(st.integers(0, 499), st.integers(1, 255))
def test_a_damaged_header_is_refused(at: int, change: int) -> None:
    raw = bytearray(archive(file("PG_VERSION", b"18\n")))
    raw[at] ^= change
    with pytest.raises(BaseBackupRefused):
        scan(bytes(raw))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_what_postgresql_does_not_write_is_refused(kind: bytes) -> None:
    with pytest.raises(BaseBackupRefused, match="does not write"):
        scan(archive(("member", kind, b"", 0o600)))
    with pytest.raises(BaseBackupRefused, match="does not write"):
        scan(archive(file("a" * 80 + "/" + "b" * 80, b"")))


def test_members_behind_the_end_are_refused() -> None:
    whole = archive(file("one", b""))
    with pytest.raises(BaseBackupRefused, match="members after its end"):
        scan(whole + whole)


def test_a_file_of_eight_gibibytes_and_more() -> None:
    """Its size does not fit in octal digits; PostgreSQL and GNU write it in base 256."""
    info = tarfile.TarInfo("log/huge")
    info.size = 9 << 30
    found: list[FileEntry] = []
    scanner = TarScanner(found.append)
    scanner.feed(info.tobuf(tarfile.GNU_FORMAT))
    assert (found[0].size, found[0].offset) == (9 << 30, BLOCK)
    with pytest.raises(BaseBackupRefused, match="breaks off"):
        scanner.finish()


@pytest.mark.parametrize("files", [0, 40_000])
@pytest.mark.parametrize("cuts", [(), (1030, 2_000_000), tuple(range(0, 4_000_000, 99_991))])
def test_the_label_and_the_manifests_end_are_kept(cuts: tuple[int, ...], files: int) -> None:
    raw = archive(
        file("backup_label", b"START WAL LOCATION: 0/6000028"),
        file("tablespace_map", b"16398 /srv/space\n"),
        file("base/1/backup_manifest", b"another one"),
        file("backup_manifest", manifest(RANGES, files)),
    )
    _, scanner = scan(raw, *cuts)
    assert scanner.tablespace_map == "16398 /srv/space\n"
    assert scanner.label == "START WAL LOCATION: 0/6000028"
    assert scanner.wal == BaseRange(Lsn.parse("0/6000028"), Lsn.parse("0/6000120"), 1)


def test_a_base_backup_over_two_timelines_needs_the_wal_of_both() -> None:
    """Of a standby that its primary left behind."""
    ranges = [
        {"Timeline": 3, "Start-LSN": "0/7000000", "End-LSN": "0/7000120"},
        {"Timeline": 2, "Start-LSN": "0/6000028", "End-LSN": "0/7000000"},
    ]
    assert wal_range(manifest(ranges)) == BaseRange(Lsn.parse("0/6000028"), Lsn.parse("0/7000120"), 3)


@pytest.mark.parametrize("content", [b"", b"{}", manifest([]), b'"WAL-Ranges": [', b'"WAL-Ranges": [1]}'])
def test_a_manifest_that_names_no_wal_is_refused(content: bytes) -> None:
    with pytest.raises(BaseBackupRefused, match="does not say which WAL"):
        wal_range(content)
