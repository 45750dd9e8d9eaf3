"""The break-glass script: every scenario's is sound bash, holds no secret, and takes no name apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.disaster.break_glass import BreakGlassFailed, break_glass_script, drill_environment, run_break_glass
from include.disaster.isolation import drill_places
from include.disaster.plan import DisasterPlan, load_plan
from include.policy import load_policy

PLAN, POLICY = load_plan(), load_policy()
ODD = "a b\"c'd$(touch pwned)`touch pwned`;é*"
# In place of the command line: writes down what it was given.
PYTHON = """\
#!{python}
import json, sys
with open({told!r}, "a") as told:
    told.write(json.dumps(sys.argv[1:]) + "\\n")
if "last-good" in sys.argv:
    print("full-20261122T000000Z")
sys.exit("{fails}" in sys.argv)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory that looks like the project's."""
    (tmp_path / "project" / "include" / "cli").mkdir(parents=True)
    (tmp_path / "project" / "include" / "cli" / "__main__.py").touch()
    return tmp_path / "project"


def environment(project: Path, *, fails: str = "nothing", **changes: str) -> dict[str, str]:
    """Every variable that a script asks for, and a command line that only notes what it is asked."""
    program = project / "python"
    program.write_text(PYTHON.format(python=sys.executable, told=str(project / "told"), fails=fails))
    program.chmod(0o755)
    return {
        "PATH": os.environ["PATH"],
        "PYTHON": str(program),
        "DATABASE": ODD,
        "OBJECTS": "bucket",
        "UNDER": f"{ODD}/",
        "CONFIGURATION": f"/tmp/{ODD}",
        "EXPECTED": str(project / ODD.replace("/", "")),
        **changes,
    }


def run(script: str, project: Path, **changes: str) -> list[list[str]]:
    """What the command line was asked, a list of words each."""
    run_break_glass(
        script,
        environment(project, **changes),
        scratch=project.parent,
        limit=timedelta(seconds=60),
        project=project,
    )
    return [json.loads(line)[2:] for line in (project / "told").read_text().splitlines()]


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(("scenario", "copy"), PLAN.subjects())
def test_every_script_is_sound_bash_that_asks_for_its_places_and_tells_each_step(
    scenario: str, copy: str, project: Path
) -> None:
    script = break_glass_script(PLAN, POLICY, scenario, copy)  # type: ignore[arg-type]

    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    bare = subprocess.run(
        ["bash", "-c", script], env={"PATH": os.environ["PATH"]}, cwd=project, capture_output=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")
    assert bare.returncode != 0
    assert b"DATABASE: Set DATABASE" in bare.stderr
    assert not (project / "told").exists()
    for task, step in PLAN.steps.items():
        if f"{task}() {{" in script:
            assert step.owner in script
            assert step.undo.rstrip(".") in script
    assert "restore_from_backup() {" in script
    assert getattr(POLICY.storage, copy).bucket in script


def test_odd_names_reach_the_commands_whole(project: Path) -> None:
    script = break_glass_script(PLAN, POLICY, "region_lost", "replica")

    asked = run(script, project, TO_LOOK_AT="yes", OBJECTS_ENDPOINT_URL="http://elsewhere")

    restore = next(words for words in asked if "restore" in words and "--plan" not in words)
    assert restore[restore.index("--database") + 1] == ODD
    assert restore[restore.index("--under") + 1] == f"{ODD}/"
    assert restore[restore.index("--configuration") + 1] == f"/tmp/{ODD}"
    assert restore[restore.index("--to") + 1] == "latest"
    assert restore[restore.index("--objects-endpoint-url") + 1] == "http://elsewhere"
    assert "--to-look-at" in restore
    assert "--overwrite" not in restore
    assert [words[5] for words in asked if "validate" in words] == [
        "data_consistency",
        "application_state",
        "service_health",
    ]
    assert not any("site" in words for words in asked)
    assert not list(project.parent.rglob("pwned"))


def test_of_ransomware_the_last_good_point_is_looked_for(project: Path) -> None:
    asked = run(break_glass_script(PLAN, POLICY, "ransomware", "replica"), project)

    assert all(words[words.index("--to") + 1] == "full-20261122T000000Z" for words in asked if "restore" in words), (
        asked
    )


def test_one_table_comes_to_look_at_and_nothing_fails_over(project: Path) -> None:
    asked = run(break_glass_script(PLAN, POLICY, "table_dropped", "primary"), project, TABLE=ODD, SITE="dr")

    restore = next(words for words in asked if "restore" in words and "--plan" not in words)
    assert restore[restore.index("--table") + 1] == ODD
    assert not {"--objects", "--configuration", "--to-look-at"} & set(restore)
    assert not any("service_health" in words or "site" in words for words in asked)


def test_a_failover_needs_somebody_elses_yes(project: Path) -> None:
    script = break_glass_script(PLAN, POLICY, "region_lost", "replica")
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()

    for nobody in ("", me):
        with pytest.raises(BreakGlassFailed, match="somebody else"):
            run(script, project, SITE="dr", APPROVED_BY=nobody)
    assert (
        "--database" not in (project / "told").read_text().splitlines()[-1]
        or '"--plan"' in (project / "told").read_text().splitlines()[-1]
    )

    asked = run(script, project, SITE="dr", APPROVED_BY="grete")
    assert asked[-1][4:7] == ["site", "switch", "dr"]
    assert "grete" in asked[-1]


def test_it_ends_behind_the_step_that_is_named(project: Path) -> None:
    asked = run(break_glass_script(PLAN, POLICY, "region_lost", "replica"), project, UNTIL="restore_from_backup")

    assert "--expected" in asked[-1]
    assert "restore" in asked[-1]


def test_it_ends_at_the_first_step_that_fails_and_says_what_to_do(project: Path) -> None:
    script = break_glass_script(PLAN, POLICY, "database_lost", "primary")

    with pytest.raises(BreakGlassFailed) as failed:
        run(script, project, fails="data_consistency")

    assert "check_data_consistency failed. When it fails: It only reads." in failed.value.what
    assert "application_state" not in (project / "told").read_text()


def test_at_its_limit_it_is_ended_with_all_that_it_started(project: Path) -> None:
    told = environment(project)
    (project / "python").write_text(f"#!/usr/bin/env bash\necho $$ > '{project}/pid'\nexec sleep 1000\n")

    with pytest.raises(BreakGlassFailed, match="no end"):
        run_break_glass(
            break_glass_script(PLAN, POLICY, "region_lost", "replica"),
            told,
            scratch=project.parent,
            limit=timedelta(seconds=2),
            project=project,
        )

    with pytest.raises(ProcessLookupError):
        os.kill(int((project / "pid").read_text()), 0)


def test_words_of_the_plan_cannot_become_commands(project: Path) -> None:
    step = PLAN.steps["activate_plan"].model_copy(
        update={"does": "x'; touch pwned\ntouch pwned", "undo": "$(touch pwned)"}
    )
    scenario = PLAN.scenarios["region_lost"].model_copy(update={"title": "Lost\ntouch pwned; it's"})
    plan: DisasterPlan = PLAN.model_copy(
        update={
            "steps": {**PLAN.steps, "activate_plan": step},
            "scenarios": {**PLAN.scenarios, "region_lost": scenario},
        }
    )

    run(break_glass_script(plan, POLICY, "region_lost", "replica"), project)

    assert not list(project.parent.rglob("pwned"))


def test_what_is_not_in_the_plan_is_refused() -> None:
    with pytest.raises(BreakGlassFailed, match="region_lost"):
        break_glass_script(PLAN, POLICY, "flood", "replica")
    with pytest.raises(BreakGlassFailed, match="replica"):
        break_glass_script(PLAN, POLICY, "region_lost", "primary")


@pytest.mark.requirement("R5.3", "R7.3")
def test_what_is_told_of_a_script_that_failed_holds_no_secret_of_its_environment(tmp_path: Path) -> None:
    with pytest.raises(BreakGlassFailed) as caught:
        run_break_glass(
            'echo "postgres://synapse:$PGPASSWORD@db is not there"; echo "$AWS_SECRET_ACCESS_KEY" >&2; exit 1',
            {"PGPASSWORD": "correct horse", "AWS_SECRET_ACCESS_KEY": "battery/staple"},
            scratch=tmp_path,
            limit=timedelta(seconds=60),
        )
    assert "postgres://synapse:…@db is not there" in str(caught.value)
    assert not [secret for secret in ("correct horse", "battery/staple") if secret in str(caught.value)]


@pytest.mark.requirement("R5.3")
def test_the_script_of_a_drill_goes_to_the_moment_that_was_declared(tmp_path: Path) -> None:
    bucket: Any = SimpleNamespace(name="b", environment=lambda: {"AWS_REGION": "eu-west-1"})
    places = drill_places("20261122t103712123456", server=None, bucket=None, root=tmp_path)
    script = break_glass_script(PLAN, POLICY, "airflow_lost", "replica")
    with drill_environment(bucket, places, target=ODD, expected=tmp_path / "expected.json", scratch=tmp_path) as known:
        assert known["TARGET"] == ODD
    assert "[[ -n ${TARGET:-} ]] || TARGET=latest" in script
