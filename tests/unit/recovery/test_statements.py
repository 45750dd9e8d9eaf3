"""The statements of PostgreSQL's own scripts, one by one, and whom each is about."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.errors import BackupError
from include.recovery.dump_script import statements, subject

SCRIPT = r"""--
-- PostgreSQL database cluster dump
--

\restrict KRDQtboAJErwlcestuuyffvwwSMQG49QLx32hE8vS9fq2gKkZuxh5hfwccz4ebk

SET client_encoding = 'UTF8';

--
-- Roles; 'they' are "quoted
--

CREATE ROLE "odd ""; role";
ALTER ROLE "odd ""; role" WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:a+b/c==$d=:e=';
COMMENT ON ROLE member IS E'say "hi;
-- it''s; no comment
\\connect nowhere';
GRANT "odd ""; role" TO member GRANTED BY postgres;

\unrestrict KRDQtboAJErwlcestuuyffvwwSMQG49QLx32hE8vS9fq2gKkZuxh5hfwccz4ebk
"""


def test_a_real_script_is_cut_where_its_statements_end() -> None:
    found = list(statements(SCRIPT))

    assert [statement.split()[0] for statement in found] == ["SET", "CREATE", "ALTER", "COMMENT", "GRANT"]
    assert found[1] == 'CREATE ROLE "odd ""; role";'
    assert found[3].endswith("\\\\connect nowhere';")
    assert "it''s; no comment" in found[3]


literals = st.text().map(lambda text: "'" + text.replace("'", "''") + "'")
names = st.text(min_size=1).map(lambda text: '"' + text.replace('"', '""') + '"')
between = st.sampled_from(["\n", "\n\n-- a comment; with 'quotes\n", "\n\\connect nowhere; 'x\n", " "])


@settings(deadline=None)
@given(written=st.lists(st.tuples(names, literals, between)))
def test_whatever_is_quoted_ends_no_statement(written: list[tuple[str, str, str]]) -> None:
    made = [f"COMMENT ON ROLE {name} IS {literal};" for name, literal, _ in written]
    script = "".join(one + after for one, (_, _, after) in zip(made, written, strict=True))
    assert list(statements(script)) == made


@pytest.mark.parametrize("script", ["CREATE ROLE a", "COMMENT ON ROLE a IS 'x;", 'CREATE ROLE "x;', "SELECT 1; x"])
def test_a_script_that_was_cut_is_refused(script: str) -> None:
    with pytest.raises(BackupError, match="ends within a statement"):
        list(statements(script))


def test_a_script_without_statements_has_none() -> None:
    assert list(statements("")) == list(statements("-- nothing\n\\restrict x")) == []


@pytest.mark.parametrize(
    ("statement", "about"),
    [
        ("CREATE ROLE member;", ("ROLE", "member")),
        ('ALTER ROLE "odd ""; role" WITH LOGIN;', ("ROLE", 'odd "; role')),
        ("ALTER ROLE member SET search_path TO 'a', 'b';", ("ROLE", "member")),
        ("COMMENT ON ROLE member IS 'about ROLE other';", ("ROLE", "member")),
        ("SECURITY LABEL FOR anon ON ROLE member IS 'x';", ("ROLE", "member")),
        ("CREATE TABLESPACE fast OWNER member LOCATION '/fast';", ("TABLESPACE", "fast")),
        ("GRANT pg_read_all_data TO member WITH ADMIN OPTION GRANTED BY postgres;", ("ROLE", "member")),
        ('GRANT "a TO b" TO "c TO d" WITH INHERIT TRUE GRANTED BY postgres;', ("ROLE", "c TO d")),
        ("GRANT SET ON PARAMETER deadlock_timeout TO member;", ("ROLE", "member")),
        ("GRANT CREATE ON TABLESPACE fast TO member;", ("ROLE", "member")),
        ("SET client_encoding = 'UTF8';", None),
    ],
)
def test_a_statement_is_about_the_role_or_tablespace_that_it_changes(
    statement: str, about: tuple[str, str] | None
) -> None:
    assert subject(statement) == about
