"""Following a runbook as a person does: its commands in one terminal, and what they say beside what it says to expect.

A ```sh block is typed as it stands, a ```text block behind it is what to expect: each of its lines is among what the
commands said, in that order; `…` stands for anything, a number for any number. Where it begins with `error:` the last
command has to fail. `export NAME=…` is for the person to fill in, and so is what the test gives.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from include.disaster.declaration import declare
from include.disaster.plan import load_plan

ROOT = Path(__file__).parents[1]
RUNBOOKS = ROOT / "docs" / "runbooks"
PARTS = re.compile(r"^(?P<heading>#{2,4} [^\n]*)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WITHIN = 120.0

NOT_TYPED = {
    "airflow dags trigger": "tests/dags runs the DAGs; what it is triggered with is read here",
    "airflow dags pause": "there is no Airflow in this test",
    "airflow dags unpause": "there is no Airflow in this test",
    "airflow backfill create": "test_runs.py backfills, through the REST API",
    "python -m include.operators.settings --import": "test_settings.py does, into an Airflow's database",
    "aws kms": "the aws program is no part of the project; test_kms.py has a KMS that is down",
    "s3cmd --configure": "it asks a person",
    "bash recover.sh": "test_break_glass_script.py runs it to its end; here it ends behind its plan",
    "docker compose": "there is no Docker where the tests run; make airflow starts the same services",
}
"""Commands that no test types, by how they begin, and why."""


@dataclass(frozen=True)
class Block:
    """Commands of a runbook, and what they are expected to say."""

    heading: str
    script: str
    expected: str

    @property
    def first(self) -> str:
        """Its first line, for errors."""
        return self.script.strip().splitlines()[0]

    @property
    def not_typed(self) -> str | None:
        """How it begins, where each of its commands is one of the exceptions."""
        lines = self.script.replace("\\\n", " ").splitlines()
        begins = [next((begin for begin in NOT_TYPED if line.startswith(begin)), None) for line in lines]
        return begins[0] if all(begins) else None


def read_blocks(runbook: str) -> list[Block]:
    """The commands of a runbook, in their order."""
    found: list[Block] = []
    heading, last = "", False
    for part in PARTS.finditer((RUNBOOKS / f"{runbook}.md").read_text("utf-8")):
        if part["heading"]:
            heading, last = part["heading"].lstrip("# "), False
        elif part["language"] == "sh":
            found.append(Block(heading, part["text"], ""))
            last = True
        elif part["language"] == "text" and last:
            found[-1] = Block(heading, found[-1].script, part["text"])
            last = False
        else:
            raise AssertionError(f"{runbook}.md, {heading}: a block that is neither sh nor text behind one")
    return found


class Person:
    """Somebody with a runbook and a terminal. `given` is what they have in hand, `directory` where they are."""

    def __init__(self, runbook: str, given: Mapping[str, str], directory: Path) -> None:
        self.runbook = runbook
        self.blocks = read_blocks(runbook)
        self.given = dict(given)
        self.directory = directory
        self.typed: set[Block] = set()
        self._session = directory / "session"
        variables = {"PATH": os.environ["PATH"], "COLUMNS": "200", "LC_ALL": "C.UTF-8", **given}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        self._session.write_text("\n".join(lines))

    def does(self, *steps: int | str) -> str:
        """Type everything below the headings that begin so, and compare; returns what was said."""
        said = ""
        for step in steps:
            begin = f"{step}. " if isinstance(step, int) else step
            blocks = [block for block in self.blocks if block.heading.startswith(begin)]
            assert blocks, f"{self.runbook}.md has no commands below {begin!r}"
            said += "".join([self._types(block) for block in blocks])
        return said

    def has(self, **more: str) -> None:
        """From now on they have this in hand, too."""
        self.given |= more
        with self._session.open("a") as session:
            session.writelines(f"\nexport {name}={shlex.quote(value)}\n" for name, value in more.items())

    def finished(self) -> None:
        """Every command of the runbook was typed, or may be left out."""
        left = [f"{block.heading}: {block.first}" for block in self.blocks if block not in self.typed]
        assert left == [], f"no test types these commands of {self.runbook}.md"

    def _types(self, block: Block) -> str:
        self.typed.add(block)
        if block.not_typed:
            return ""
        kept = f"(export -p; declare -f) > {self._session}"
        done = subprocess.run(
            ["bash", "-c", f". {self._session}; set -euo pipefail\n{self._filled_in(block)}\n{kept}"],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"]},  # all else is the session's: what a command unset stays unset
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        where = f"{self.runbook}.md, {block.heading}: {block.first}\n{done.stdout}"
        assert (done.returncode != 0) == bool(re.match(r"(psql: )?error:", block.expected)), where
        missing = unexpected(block.expected, done.stdout)
        assert missing is None, f"{where}\ndoes not say: {missing}"
        return done.stdout

    def _filled_in(self, block: Block) -> str:
        lines = []
        for line in block.script.splitlines():
            if line.startswith("export "):
                names = [word.partition("=")[0] for word in shlex.split(line, comments=True)[1:]]
                if set(names) <= self.given.keys():
                    continue
                assert "…" not in line, f"{self.runbook}.md: the test has no value for {line}"
            lines.append(line)
        return "\n".join(lines)


def unexpected(expected: str, said: str) -> str | None:
    """The first line of what was to be expected that was not said; None when all was."""
    rest: Iterator[str] = iter(said.splitlines())
    for line in filter(str.strip, expected.splitlines()):
        pattern = ".*".join(re.escape(_shape(part)) for part in line.split("…"))
        if not any(re.fullmatch(pattern, _shape(spoken)) for spoken in rest):
            return line
    return None


def _shape(line: str) -> str:
    return NUMBER.sub("0", " ".join(line.split()))


@contextmanager
def following(runbook: str, given: Mapping[str, str], directory: Path) -> Iterator[Person]:
    """A person who follows a runbook to its end: in the end nothing of it is left untyped."""
    place = directory / f"following-{runbook}"
    place.mkdir()
    person = Person(runbook, given, place)
    yield person
    person.finished()


def declared(block: Block) -> None:
    """What a run of the recovery runbook is triggered with is what its form takes."""
    words = shlex.split(block.script.replace("\\\n", " "))
    conf = json.loads(words[words.index("--conf") + 1])
    declare(
        load_plan(),
        mode=conf.get("mode", "drill"),
        scenario=conf["scenario"],
        copy=conf.get("copy", ""),
        site=conf.get("site", ""),
        target=conf.get("target", ""),
        table=conf.get("table", ""),
        failed=conf.get("failed_at", ""),
        run="20261122t103712123456",
        declared=datetime.now(UTC),
        by="somebody",
    )
