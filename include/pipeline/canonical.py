"""The one JSON spelling of a value.

What is signed, and what binds a stream to its place, must be the same bytes everywhere.
"""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no white space, no escapes beyond those JSON requires, and no NaN.

    The subset of RFC 8785 that needs no floating point: the callers put only text, integers, lists and objects in.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
