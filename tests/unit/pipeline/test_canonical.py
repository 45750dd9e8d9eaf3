"""The one spelling of a value: whatever order it was built in, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.canonical import canonical_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(values)
def test_it_reads_back_and_is_spelled_one_way(value: Any) -> None:
    spelled = canonical_json(value)

    assert json.loads(spelled) == value
    assert canonical_json(json.loads(spelled)) == spelled


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_plays_no_part(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_it_is_written_without_space_or_escapes() -> None:
    assert canonical_json({"b": [1, "Zürich \u2028/"], "a": None}) == '{"a":null,"b":[1,"Zürich \u2028/"]}'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"number": number})
