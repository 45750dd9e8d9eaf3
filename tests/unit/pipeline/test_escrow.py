"""The escrow: it comes back whole with its passphrase, and with nothing else."""

from __future__ import annotations

import json

import pytest

from include.pipeline import escrow
from include.pipeline.escrow import EscrowRefused, PassphraseRefused

PASSPHRASE = "five random words öf mine"
CONTENT = b'{"format": 2, "secret": "it is"}\n'
pytestmark = pytest.mark.requirement("R7.1")


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return escrow.seal(CONTENT, PASSPHRASE)


def test_it_comes_back_and_tells_nothing(sealed: bytes) -> None:
    assert escrow.unseal(sealed, PASSPHRASE) == CONTENT
    assert b"secret" not in sealed
    assert set(json.loads(sealed)) == {"format", "kind", "scrypt", "nonce", "sealed"}


@pytest.mark.parametrize("wrong", ["", PASSPHRASE + " ", PASSPHRASE.upper()])
def test_another_passphrase_opens_nothing(sealed: bytes, wrong: str) -> None:
    with pytest.raises(EscrowRefused, match="the passphrase is another one"):
        escrow.unseal(sealed, wrong)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_file_that_was_cut_is_told_from_a_wrong_passphrase(sealed: bytes, share: float) -> None:
    with pytest.raises(EscrowRefused, match="not all of it"):
        escrow.unseal(sealed[: int(len(sealed.rstrip()) * share)], PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("kind", "another"),
        ("nonce", "AAAA"),
        ("sealed", None),
        ("scrypt", {"n": 2, "r": 8, "p": 1, "salt": "AAAA"}),
        ("scrypt", {"n": 1 << 40, "r": 8, "p": 1, "salt": "AAAA"}),
        ("more", 1),
    ],
)
def test_what_was_edited_is_refused(sealed: bytes, field: str, value: object) -> None:
    with pytest.raises(EscrowRefused):
        escrow.unseal(json.dumps({**json.loads(sealed), field: value}).encode(), PASSPHRASE)


def test_a_short_passphrase_is_no_protection() -> None:
    with pytest.raises(PassphraseRefused, match="15 characters"):
        escrow.seal(CONTENT, "fifteen letters")
