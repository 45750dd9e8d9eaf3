from __future__ import annotations

from itertools import islice

import pytest

from include.sandbox.lifelike import MIB, Lifelike, StoredObject

SMALL = 0.02


def everything(data: Lifelike) -> list[object]:
    keys = data.objects()
    bodies = [each.body(version) for each in keys if each.size < MIB for version in range(each.drafts + 1)]
    sizes = {each.key: each.size for each in keys}
    tables = [(name, columns, list(rows)) for name, columns, rows in data.tables()]
    attachments = list(data.attachments(sizes))
    return [tables, keys, bodies, attachments, list(data.large_objects()), data.files(), list(data.commits())]


def test_the_same_seed_gives_the_same_data() -> None:
    assert everything(Lifelike(1, SMALL)) == everything(Lifelike(1, SMALL))


def test_another_seed_gives_other_data_of_every_kind() -> None:
    pairs = zip(everything(Lifelike(1, SMALL)), everything(Lifelike(2, SMALL)), strict=True)
    assert all(one != other for one, other in pairs)


def test_data_keeps_its_promised_values() -> None:
    """A pinned sample: every Python draws the same, or figures from two machines cannot be compared."""
    _, _, rows = next(iter(Lifelike(1, 1.0).tables()))
    assert [row[1:4] for row in islice(rows, 2)] == [
        ("probe@synapse.example", "Chloé Room", "ja"),
        ("user2@synapse.example", "İpek Title", "ja"),
    ]


@pytest.mark.parametrize("scale", [SMALL, 1.0])
def test_every_attachment_names_an_object_that_lives(scale: float) -> None:
    data = Lifelike(1, scale)
    living = {each.key: each.size for each in data.objects() if not each.deleted}
    named = [row[3] for row in data.attachments(living)]
    assert named
    assert set(named) <= living.keys()
    assert len(set(named)) == len(named)


def test_objects_are_of_every_kind_the_requirements_name() -> None:
    objects = Lifelike(1, 1.0).objects()
    living = [each for each in objects if not each.deleted]
    assert len(living) >= 500
    assert len({each.key for each in objects}) == len(objects)
    assert {each.key.split("/")[0] for each in living} == {"uploads", "generated", "media"}
    assert 60 * MIB < sum(each.size for each in living) < 100 * MIB
    assert {0, 8 * MIB} <= {each.size for each in living}
    assert any(" " in each.key for each in living)
    assert any(not each.key.isascii() for each in living)
    assert any(each.drafts for each in living)
    assert any(each.deleted for each in objects)


@pytest.mark.parametrize(
    ("content_type", "start"),
    [("text/markdown", b"# "), ("application/json", b"["), ("image/png", b"\x89PNG"), ("image/jpeg", b"\xff\xd8")],
)
def test_bodies_look_like_their_content_type(content_type: str, start: bytes) -> None:
    each = StoredObject("uploads/x", content_type, 5_000, "seed", drafts=1)
    assert each.body(1).startswith(start)
    assert each.body(0) != each.body(1)


@pytest.mark.parametrize("content_type", ["text/markdown", "application/json", "image/png", "video/mp4"])
def test_an_empty_object_is_empty(content_type: str) -> None:
    assert StoredObject("uploads/x", content_type, 0, "seed").body(0) == b""
