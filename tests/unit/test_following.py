"""Following a runbook: what was not said, was not typed or cannot be filled in is an error, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import following as module
from tests.following import Person, following, read_blocks, unexpected

RUNBOOK = """\
## In hand

```sh
export NAME=… OTHER=…
```

## 1. Say it

```sh
echo "$NAME is 17 of 2026-11-29"
```

```text
… is 3 of 2026-11-22
```

## 2. Fail

```sh
false || { echo "error: it is gone"; exit 1; }
```

```text
error: it is …
```

## 3. Elsewhere

```sh
airflow dags trigger something \\
  --conf '{}'
```
"""
GIVEN = {"NAME": "Ada", "OTHER": "x"}


@pytest.fixture
def runbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "RUNBOOKS", tmp_path)
    path = tmp_path / "some.md"
    path.write_text(RUNBOOK)
    return path


def test_all_of_it_is_typed(runbook: Path, tmp_path: Path) -> None:
    with following("some", GIVEN, tmp_path) as person:
        assert person.does("In hand", 1) == "Ada is 17 of 2026-11-29\n"
        person.does(2, 3)


def test_it_is_one_terminal(runbook: Path, tmp_path: Path) -> None:
    runbook.write_text(
        '## 1. Change\n```sh\nunset OTHER\nexport NAME=Kim\nsaid() { echo "$NAME ${OTHER:-none}"; }\n```\n'
        "## 2. See\n```sh\nsaid\n```\n```text\nAda none\n```\n"
    )
    with following("some", GIVEN, tmp_path) as person:
        person.does(1, 2)


def test_what_nobody_typed_is_named(runbook: Path, tmp_path: Path) -> None:
    untyped = pytest.raises(AssertionError, match=r"no test types these commands of some\.md")
    with untyped, following("some", GIVEN, tmp_path) as person:
        person.does("In hand", 1, 3)


@pytest.mark.parametrize(
    ("words", "others", "step", "told"),
    [
        ("… is 3", "… was 3", 1, "does not say: … was 3"),
        ("exit 1", "exit 0", 2, "2. Fail"),
        ("error: it is …", "it is …", 2, "2. Fail"),
        ('echo "$NAME', 'false; echo "$NAME', 1, "1. Say it"),
        ('echo "$NAME', 'echo "$UNHEARD_OF', 1, "UNHEARD_OF: unbound variable"),
        ("airflow dags trigger", "cp a b; airflow dags trigger", 3, "cp: cannot stat"),
        ("export NAME=…", "export NONE=…", "In hand", "the test has no value for export NONE=…"),
    ],
)
def test_what_is_otherwise_than_it_says_is_an_error(
    runbook: Path, tmp_path: Path, *, words: str, others: str, step: int | str, told: str
) -> None:
    runbook.write_text(RUNBOOK.replace(words, others))
    with pytest.raises(AssertionError, match=told):
        Person("some", GIVEN, tmp_path).does(step)


def test_a_block_of_no_kind_is_refused(runbook: Path) -> None:
    runbook.write_text(RUNBOOK.replace("```sh\necho", "```bash\necho"))
    with pytest.raises(AssertionError, match=r"1\. Say it: a block that is neither"):
        read_blocks("some")


@pytest.mark.parametrize(
    ("expected", "said", "missing"),
    [
        ("a 1\nb 2", "a 7\nother\nb 8", None),
        ("b 2\na 1", "a 7\nb 8", "a 1"),
        ("reaches  2026-11-22T01:00:03.2+00:00", " reaches 2026-11-29T23:59:59.123+00:00", None),
        ("0 failed", "20 ok, 0 failed", "0 failed"),
        ("a", "ab", "a"),
        ("a…", "ab", None),
    ],
)
def test_numbers_differ_and_words_do_not(expected: str, said: str, missing: str | None) -> None:
    assert unexpected(expected, said) == missing
