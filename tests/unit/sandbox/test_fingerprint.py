from __future__ import annotations

from dataclasses import replace

from include.sandbox.fingerprint import File, Fingerprint, Object, Table

STATE = Fingerprint(
    tables={"public.users": Table(2, "aa" * 32)},
    sequences={"public.users_id_seq": 2},
    large_objects={"910000": "synapse_app 00"},
    definitions={"view public.v": "SELECT 1;"},
    objects={"uploads/a": Object("bb" * 32, "text/markdown", {"origin": "web"})},
    configuration={"HEAD": "c0ffee"},
    files={"secrets/mail.key": File("dd" * 32, 0o600)},
)


def test_equal_states_are_equal_and_differ_in_nothing() -> None:
    same = replace(STATE, tables=dict(STATE.tables))
    assert same == STATE
    assert same.difference(STATE) == []


def test_a_difference_names_the_part_the_thing_and_both_values() -> None:
    other = replace(
        STATE,
        tables={"public.users": Table(1, "ab" * 32)},
        objects={},
        files={"secrets/mail.key": File("dd" * 32, 0o644)},
        configuration={"HEAD": "c0ffee", "settings/limits.yaml": " M"},
    )
    assert other != STATE
    assert STATE.difference(other) == [
        "tables public.users: 2 rows, aaaaaaaaaaaaaaaa | 1 rows, abababababababab",
        "objects uploads/a: bbbbbbbbbbbbbbbb, text/markdown, {'origin': 'web'} | missing",
        "configuration settings/limits.yaml: missing | M",
        "files secrets/mail.key: dddddddddddddddd, mode 0600 | dddddddddddddddd, mode 0644",
    ]


def test_a_long_definition_is_shortened_to_a_line() -> None:
    other = replace(STATE, definitions={"view public.v": "SELECT\n" + "many, " * 200})
    (line,) = STATE.difference(other)
    assert line.endswith("…")
    assert "\n" not in line
