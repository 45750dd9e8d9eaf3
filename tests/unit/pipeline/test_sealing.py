"""A sealed stream gives back what went in, or is refused: nothing between (R7.1)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from backports import zstd
from cryptography.cobblestone import Cobblestone256Encryptor
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.canonical import canonical_json
from include.pipeline.sealing import OUTPUT_BYTES, Measure, Opener, Sealer, StreamRefused, open_stream

KEY = bytes(range(32))
CONTEXT = {"artifact": "database/users.pgdump", "segment": 0}
NAME = "s3://backups/00000"
EMPTY_MESSAGE_BYTES = 72
EMPTY_FRAME_BYTES = 9


def seal(chunks: list[bytes], *, flushed: bool = False) -> tuple[bytes, Measure]:
    sealer = Sealer(KEY, CONTEXT, level=3)
    stored = b""
    for chunk in chunks:
        stored += sealer.add(chunk)
        if flushed:
            stored += sealer.flush()
    return stored + sealer.finish(), sealer.measure()


def unseal(stored: bytes, *, step: int = 1 << 20, expected: Measure | None = None) -> bytes:
    return b"".join(open_stream(pieces(stored, step), KEY, CONTEXT, name=NAME, expected=expected))


def pieces(stored: bytes, step: int) -> Iterator[bytes]:
    for start in range(0, len(stored), step):
        yield stored[start : start + step]


@pytest.mark.requirement("R7.1")
@settings(deadline=None)
@given(
    chunks=st.lists(st.binary(max_size=2_000) | st.binary(min_size=1, max_size=8).map(lambda seed: seed * 9_000)),
    step=st.integers(1, 20_000),
    flushed=st.booleans(),
)
def test_any_bytes_in_any_chunks_come_back(chunks: list[bytes], step: int, flushed: bool) -> None:
    stored, measure = seal(chunks, flushed=flushed)

    assert unseal(stored, step=step, expected=measure) == b"".join(chunks)
    assert (measure.raw_bytes, measure.stored_bytes) == (sum(map(len, chunks)), len(stored))


def test_an_empty_stream_is_a_frame_and_72_bytes() -> None:
    """Cobblestone adds a salt, a commitment and a tag; zstd's own empty frame is in it."""
    encryptor = Cobblestone256Encryptor(KEY, context=canonical_json(CONTEXT))
    stored, measure = seal([])

    assert len(encryptor.finalize()) == EMPTY_MESSAGE_BYTES
    assert len(stored) == measure.stored_bytes == EMPTY_MESSAGE_BYTES + EMPTY_FRAME_BYTES
    assert unseal(stored, expected=measure) == b""


def test_the_same_bytes_never_look_the_same_twice() -> None:
    assert seal([b"the same"])[0] != seal([b"the same"])[0]


@pytest.mark.requirement("R4.5", "R7.1")
def test_every_single_flipped_bit_is_refused() -> None:
    stored, _ = seal([b"a small stream", b" in two chunks"])
    for number in range(8 * len(stored)):
        flipped = bytearray(stored)
        flipped[number // 8] ^= 1 << number % 8
        with pytest.raises(StreamRefused, match=NAME):
            unseal(bytes(flipped))


@settings(deadline=None)
@given(cut=st.integers(1, EMPTY_MESSAGE_BYTES + 40_000), at_front=st.booleans())
def test_a_stream_that_was_cut_is_refused(cut: int, at_front: bool) -> None:
    stored, _ = seal([secrets.token_bytes(40_000)])
    left = stored[cut:] if at_front else stored[:-cut]
    with pytest.raises(StreamRefused, match=NAME):
        unseal(left)


@settings(deadline=None)
@given(more=st.binary(min_size=1, max_size=40_000))
def test_a_stream_that_goes_on_after_its_end_is_refused(more: bytes) -> None:
    stored, _ = seal([b"whole"])
    with pytest.raises(StreamRefused, match=NAME):
        unseal(stored + more)


@pytest.mark.parametrize(
    ("key", "context"),
    [
        (bytes(32), CONTEXT),
        (KEY, {**CONTEXT, "segment": 1}),
        (KEY, {**CONTEXT, "artifact": "database/chats.pgdump"}),
        (KEY, {**CONTEXT, "more": ""}),
    ],
)
def test_another_key_or_place_opens_nothing(key: bytes, context: dict[str, str | int]) -> None:
    stored, _ = seal([b"secret"])
    with pytest.raises(StreamRefused, match="does not decrypt"):
        list(open_stream([stored], key, context, name=NAME))


def test_a_whole_stream_that_is_not_the_expected_one_is_refused() -> None:
    stored, _ = seal([b"this"])
    _, other = seal([b"that"])
    with pytest.raises(StreamRefused, match="not the one"):
        unseal(stored, expected=other)


@pytest.mark.parametrize(
    "inside", [b"", b"no frame at all", zstd.compress(b"frame")[:-1], zstd.compress(b"one") + zstd.compress(b"two")]
)
def test_what_decrypts_and_is_not_one_frame_is_refused(inside: bytes) -> None:
    encryptor = Cobblestone256Encryptor(KEY, context=canonical_json(CONTEXT))
    with pytest.raises(StreamRefused, match=r"frame|decompress"):
        unseal(encryptor.update(inside) + encryptor.finalize())


def test_a_stream_that_swells_is_handed_on_in_bounded_pieces() -> None:
    raw_bytes = 64 * OUTPUT_BYTES
    stored, measure = seal([bytes(OUTPUT_BYTES)] * 64)
    opener = Opener(KEY, CONTEXT, name=NAME)
    sizes = [len(raw) for part in (opener.add(stored), opener.finish()) for raw in part]

    assert measure.stored_bytes < raw_bytes / 1_000
    assert sum(sizes) == raw_bytes
    assert max(sizes) <= OUTPUT_BYTES


def test_flush_makes_the_stored_size_tell_the_truth() -> None:
    noise = secrets.token_bytes(1 << 20)
    sealer = Sealer(KEY, CONTEXT, level=3)
    sealer.add(noise)
    sealer.flush()

    assert len(noise) - (16 << 10) <= sealer.stored_bytes <= len(noise) + (4 << 10)


def test_a_refusal_tells_neither_key_nor_content() -> None:
    stored, _ = seal([b"the content"])
    with pytest.raises(StreamRefused) as refused:
        unseal(stored[:-1])

    told = f"{refused.value!r} {refused.value}"
    assert KEY.hex() not in told
    assert "the content" not in told
