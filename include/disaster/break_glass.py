"""The recovery as a bash script, for the day when Airflow is lost, too: made of the plan, and run in drills (R5.3).

It knows no secret: keys, credentials and passwords are the environment's, as of every command of `include.cli`. Places
are variables, which it asks for before it does anything; each step says what it does, who answers for it, within what
time, what it insists on, and what to do when it fails. It ends at the first one that does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from include.disaster.declaration import LAST_GOOD
from include.disaster.plan import Copy, DisasterPlan, Scenario, Step, Task
from include.errors import BackupError
from include.pipeline.keys import KEYRING_VARIABLE
from include.pipeline.process import child_environment
from include.pipeline.store import Bucket
from include.policy import Policy
from include.recovery.moments.places import Places
from include.recovery.scratch import APPLICATION

PROJECT = Path(__file__).parents[2]
_CLI = "python -m include.cli"
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_LINE = re.compile(r"^(step|failed) (?P<name>\S+) (?P<began>\S+) (?P<ended>\S+)$", re.MULTILINE)
_SAID = 12
_SECRETS = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PROFILE = "objects"
_SECONDS_TO_END = 10

_HEAD = """\
#!/usr/bin/env bash
# {title}.
#
# Brings {what} back from the {copy} of the backups, without Airflow.
# Made of the disaster-recovery plan by `python -m include.cli break-glass {scenario} --copy {copy}`.
# The runbook is docs/runbooks/{runbook}.md.
#
# Run it where the project and its environment are. It holds no secret; give it by the environment
#   {keyring}, or what your key service asks for           the keys of the backups
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL    the store that the backups are in
#   PGHOST, PGPORT, PGUSER, PGPASSWORD                            the server to restore into
# and what stands below. Every step that ends leaves a line in $LOG, with its times in UTC:
#   step <name> <began> <ended>
set -euo pipefail
umask 077

# Where to: names that are free, unless REPLACE=yes says that what is there is replaced, and kept under another name.\
"""
_FRAME = """\
# TO_LOOK_AT=yes brings the database without its owners and privileges: then the login need not be a superuser's.
# UNTIL=plan_recovery, or another step, ends behind it: to look at the plan first.
# OBJECTS_ENDPOINT_URL and OBJECTS_PROFILE are of the bucket for the objects, when it is elsewhere than the backups.
: "${TO_LOOK_AT:=}" "${REPLACE:=}" "${OBJECTS_ENDPOINT_URL:=}" "${OBJECTS_PROFILE:=}" "${UNTIL:=}"
: "${PYTHON:=python3}" "${PROJECT:=$PWD}"
: "${EXPECTED:=$PWD/expected.json}" "${LOG:=$PWD/break-glass.log}"
EXPECTED=$(realpath -m -- "$EXPECTED") LOG=$(realpath -m -- "$LOG")

cd -- "$PROJECT"
[[ -f include/cli/__main__.py ]] || { echo "$PROJECT is not the project: name it, PROJECT=/path." >&2; exit 2; }

NAME='' UNDO=''
now() { date -u +%Y-%m-%dT%H:%M:%S.%3NZ; }
say() { printf '%s\\n' "$*" | tee -a -- "$LOG"; }
begin() { NAME=$1 UNDO=$3 BEGAN=$(now); printf '\\n%s: %s\\n' "$1" "$2"; }
end() {
    local last=$NAME
    say "step $NAME $BEGAN $(now)"
    NAME=''
    [[ $last != "$UNTIL" ]] || exit 0
}
ended() {
    local status=$?
    [[ -z $NAME ]] || { say "failed $NAME $BEGAN $(now)"; echo "$NAME failed. When it fails: $UNDO." >&2; }
    exit "$status"
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"""


class BreakGlassFailed(BackupError):
    """A step of the script failed, or it could not be run."""


@dataclass(frozen=True)
class StepRun:
    """One step that the script carried out."""

    name: str
    began: datetime
    ended: datetime


def break_glass_script(plan: DisasterPlan, policy: Policy, scenario: str, copy: Copy) -> str:
    """The script that recovers a scenario of the plan from one copy; raises `BreakGlassFailed` for what it has not."""
    chosen = plan.scenarios.get(scenario)
    if chosen is None:
        raise BreakGlassFailed(
            f"The plan has no scenario {scenario!r}.", mend=f"It has {', '.join(plan.scenarios)}: name one of them."
        )
    if copy not in chosen.copies:
        raise BreakGlassFailed(
            f"{scenario} is not recovered from the {copy}.", mend=f"From {' or '.join(chosen.copies)}, says the plan."
        )
    return "\n".join(_lines(plan, policy, scenario, chosen, copy)) + "\n"


@contextlib.contextmanager
def drill_environment(
    bucket: Bucket, places: Places, *, target: str, expected: Path, scratch: Path
) -> Iterator[dict[str, str]]:
    """What the script asks for, to bring a copy's backups to the places of a drill; its validations are left to others.

    The objects' bucket may have credentials of its own: they are in a file that only we read, and that is gone after.
    """
    known = {
        **bucket.environment(),
        KEYRING_VARIABLE: os.environ.get(KEYRING_VARIABLE, ""),
        "PYTHON": sys.executable,
        "BUCKET": bucket.name,
        "TARGET": target,
        "TO_LOOK_AT": "yes",
        "UNTIL": "restore_from_backup",
        "EXPECTED": str(expected),
    }
    with tempfile.TemporaryDirectory(prefix="credentials-", dir=scratch) as directory:
        if places.server and places.database:
            known |= {**places.server.environment(APPLICATION), "DATABASE": places.database}
        if places.bucket:
            known |= {"OBJECTS": places.bucket.name, "UNDER": places.prefix}
            known |= _profile(places.bucket, Path(directory) / "credentials")
        if places.configuration:
            known["CONFIGURATION"] = str(places.configuration)
        yield known


def _profile(bucket: Bucket, file: Path) -> dict[str, str]:
    """The variables that name a bucket's credentials as a profile of its own, which is written to a file."""
    names = {
        "AWS_ACCESS_KEY_ID": "aws_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
        "AWS_SESSION_TOKEN": "aws_session_token",
        "AWS_REGION": "region",
    }
    theirs = bucket.environment()
    lines = [f"{name} = {theirs[variable]}\n" for variable, name in names.items() if variable in theirs]
    file.touch(mode=0o600)
    file.write_text(f"[{_PROFILE}]\n{''.join(lines)}", encoding="utf-8")
    elsewhere = theirs.get("AWS_ENDPOINT_URL")
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
        "OBJECTS_PROFILE": _PROFILE,
        **({"OBJECTS_ENDPOINT_URL": elsewhere} if elsewhere else {}),
    }


def run_break_glass(
    script: str, environment: Mapping[str, str], *, scratch: Path, limit: timedelta, project: Path = PROJECT
) -> tuple[StepRun, ...]:
    """Run a script as a person would, with `environment` and nothing of ours; returns its steps, in their order.

    The environment holds what the script asks for: the store's and the keys' credentials, libpq's variables, PYTHON,
    the places, EXPECTED; for a drill TO_LOOK_AT=yes, and UNTIL, where others validate. Objects with credentials of
    their own have a profile (OBJECTS_PROFILE, in the file that AWS_SHARED_CREDENTIALS_FILE names).

    It is gone when this returns, with whatever it started. Raises `BreakGlassFailed` with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="break-glass-", dir=scratch) as directory:
        path, log, output = (Path(directory) / name for name in ("recover.sh", "steps.log", "output.txt"))
        path.write_text(script, encoding="utf-8")
        known = {**child_environment(), **environment, "PROJECT": str(project), "LOG": str(log)}
        with output.open("wb") as words:
            code = _run(["bash", str(path)], known, Path(directory), words.fileno(), limit)
        said = output.read_text(encoding="utf-8", errors="replace").splitlines()
        if code != 0:
            tail = _hidden("\n".join(said[-_SAID:]), environment)
            raise BreakGlassFailed(
                f"The break-glass script ended with {'no end' if code is None else code}: {tail}",
                mend="Mend what it names, and run it again: the first step begins anew.",
            )
        return tuple(steps_in(log.read_text(encoding="utf-8")))


def _hidden(text: str, environment: Mapping[str, str]) -> str:
    """What a program said, without the passwords and keys that it was given: it is mailed."""
    for variable in _SECRETS:
        if secret := environment.get(variable):
            text = text.replace(secret, "…")
    return text


def steps_in(log: str) -> Iterator[StepRun]:
    """The steps that a script's log tells."""
    for found in _LINE.finditer(log):
        if found[1] == "step":
            yield StepRun(found["name"], datetime.fromisoformat(found["began"]), datetime.fromisoformat(found["ended"]))


def _run(argv: list[str], environment: Mapping[str, str], directory: Path, words: int, limit: timedelta) -> int | None:
    """Its exit code, None where it was ended at the limit; its whole process group is gone."""
    process = subprocess.Popen(
        argv,
        env=dict(environment),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=limit.total_seconds())
    except subprocess.TimeoutExpired:
        return None
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_SECONDS_TO_END)


def _lines(plan: DisasterPlan, policy: Policy, name: str, scenario: Scenario, copy: Copy) -> Iterator[str]:
    place = getattr(policy.storage, copy)
    yield _HEAD.format(
        title=_words(scenario.title),
        what=", ".join(scenario.restores) if scenario.table is None else "one table",
        copy=copy,
        scenario=shlex.quote(name),
        runbook=_words(scenario.runbook),
        keyring=KEYRING_VARIABLE,
    )
    yield _default("BUCKET", place.bucket)
    yield _default("REGION", place.region)
    if scenario.target != LAST_GOOD:
        yield _default("TARGET", scenario.target)
    else:
        yield ': "${TARGET:=}"    # left empty, it is looked for: the newest point before anything looks wrong'
    for source, variable, wanted in (
        ("database", "DATABASE", "the name of the database to restore"),
        ("objects", "OBJECTS", "the bucket for the objects"),
        ("configuration", "CONFIGURATION", "the path for the checkout of the configuration"),
    ):
        if source in scenario.restores:
            yield f': "${{{variable}:?Set {variable}: {wanted}}}"'
    if "objects" in scenario.restores:
        yield ': "${UNDER:=}"    # put before the key of each object'
    if scenario.table is not None:
        yield _default("TABLE", scenario.table)
    if scenario.fails_over:
        yield ': "${SITE:=}" "${APPROVED_BY:=}"    # a failover: the site to switch to, and who else than you said yes'
    yield _FRAME
    yield from _options(scenario)
    steps = {task: step for task, step in plan.steps.items() if _is_of(task, step, scenario)}
    for number, (task, step) in enumerate(steps.items(), start=1):
        yield f"# {number}. {task}: {_words(step.does)} ({_words(step.owner)}, within {_words(str(step.limit))})"
        yield f"#    It insists on: {_words(step.checks)}."
        yield f"#    When it fails: {_words(step.undo)}."
        yield f"{task}() {{"
        yield from (f"    {line}" for line in _body(task, step, scenario))
        yield "}\n"
    yield 'say "begun $(now), from $BUCKET"'
    for task, step in steps.items():
        yield f"begin {task} {shlex.quote(_words(step.does))} {shlex.quote(_words(step.undo))}"
        yield f"{task}\nend"
    yield 'say "done $(now)"'


def _default(variable: str, value: str) -> str:
    return f"[[ -n ${{{variable}:-}} ]] || {variable}={shlex.quote(value)}"


def _options(scenario: Scenario) -> Iterator[str]:
    """Places and ways as arrays of words, so that no name is ever taken apart."""
    yield "places=() how=() elsewhere=()"
    if "objects" in scenario.restores:
        yield '[[ -z $OBJECTS_ENDPOINT_URL ]] || elsewhere+=(--objects-endpoint-url "$OBJECTS_ENDPOINT_URL")'
        yield '[[ -z $OBJECTS_PROFILE ]] || elsewhere+=(--objects-profile "$OBJECTS_PROFILE")'
    if "database" in scenario.restores:
        yield 'places+=(--database "$DATABASE")'
    if "objects" in scenario.restores:
        yield 'places+=(--objects "$OBJECTS" --under "$UNDER" ${elsewhere[@]+"${elsewhere[@]}"})'
    if "configuration" in scenario.restores:
        yield 'places+=(--configuration "$CONFIGURATION")'
    if scenario.table is not None:
        yield 'how+=(--table "$TABLE")'
    else:
        yield "[[ $TO_LOOK_AT != yes ]] || how+=(--to-look-at)"
        yield "[[ $REPLACE != yes ]] || how+=(--overwrite)"
    yield ""


def _is_of(task: Task, step: Step, scenario: Scenario) -> bool:
    """Whether a step is one of the script's: somebody may do something, and the scenario has something for it."""
    if task in ("approve", "switch_site"):
        return scenario.fails_over
    whole = scenario.table is None and len(scenario.restores) > 2  # noqa: PLR2004 - all three
    return bool(step.command) and (task != "check_service_health" or whole)


def _body(task: Task, step: Step, scenario: Scenario) -> Iterator[str]:
    if task == "approve":
        yield "[[ -n $SITE ]] || { echo 'No SITE is named: nothing fails over.'; return; }"
        yield '[[ -n $APPROVED_BY && $APPROVED_BY != "$(id -un)" ]] || {'
        yield "    echo 'Show the plan above to somebody else; when they say yes, set APPROVED_BY to who it was.' >&2"
        yield "    return 1"
        yield "}"
        return
    if task == "switch_site":
        yield "[[ -n $SITE ]] || { echo 'No SITE is named: the active site stays.'; return; }"
    yield _command(step, scenario)
    if task == "switch_to_replica" and scenario.target == LAST_GOOD:
        find = _filled(f"{_CLI} {{copy}} last-good", scenario)
        yield f"[[ -n $TARGET ]] || TARGET=$({find})"
        yield 'echo "The last good point: $TARGET"'


def _command(step: Step, scenario: Scenario) -> str:
    limit = f"timeout --foreground {round(step.limit.total_seconds())} "
    return limit + _filled(" ".join(step.command.split()), scenario)


def _filled(command: str, scenario: Scenario) -> str:
    values = {
        "copy": '--bucket "$BUCKET" --region "$REGION"',
        "target": '"$TARGET"',
        "database": '"$DATABASE"',
        "objects": '"$OBJECTS"',
        "configuration": '"$CONFIGURATION"',
        "expected": '"$EXPECTED"',
        "places": '"${places[@]}"',
        "how": '${how[@]+"${how[@]}"}',
        "site": f'"$SITE" --approved-by "$APPROVED_BY" --because {shlex.quote(_words(scenario.title))}',
    }
    ours = command.replace(_CLI, '"$PYTHON" -m include.cli')
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), ours)


def _words(text: str) -> str:
    """One line, which cannot end a comment."""
    return " ".join(text.split()).rstrip(".")
