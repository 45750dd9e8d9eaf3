"""The disaster-recovery plan: shipped whole, within the RTO, and refused by the line of what is wrong (R5.3, R5.4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.disaster.plan import DEFAULT, TASKS, PlanError, load_plan
from include.policy import load_policy

SHIPPED = DEFAULT.read_text(encoding="utf-8")
RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"


@pytest.mark.requirement("R5.3", "R5.4")
def test_the_shipped_plan_has_every_step_and_fits_into_the_rto() -> None:
    plan = load_plan()
    assert tuple(plan.steps) == TASKS
    assert plan.longest < load_policy().recovery.rto
    assert {"region_lost", "database_lost", "table_dropped", "ransomware", "airflow_lost"} == set(plan.scenarios)


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("old", "new", "where", "words"),
    [
        ("copies: [replica]\n", "copies: [third]\n", "scenarios.region_lost.copies[0]", "'primary' or 'replica'"),
        ("    restores: [database]\n", "    restores: []\n", "scenarios.table_dropped.restores", "empty"),
        ("windows\n", "windows {everything}\n", "steps.switch_to_replica.command", "unknown {everything}"),
        ("    limit: 2 hours\n", "    limit: soon\n", "steps.restore_from_backup.limit", "soon"),
        ("  every: 3 months", "  often: 3 months", "drills.often", "unknown key"),
        ("    fails_over: false", "    fails_over: perhaps", "scenarios.table_dropped.fails_over", "true or false"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_line(tmp_path: Path, old: str, new: str, where: str, words: str) -> None:
    assert SHIPPED.count(old) == 1
    file = tmp_path / "plan.yaml"
    file.write_text(SHIPPED.replace(old, new), encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    problem = next(problem for problem in caught.value.problems if problem.where == where)
    line = SHIPPED[: SHIPPED.index(old)].count("\n") + 1
    assert problem.line == line
    assert words in f"{problem.what} {problem.mend}"
    assert "DISASTER_PLAN" in caught.value.mend


@pytest.mark.requirement("R5.3")
def test_a_plan_without_one_of_its_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(SHIPPED[: SHIPPED.index("  clean_up:")], encoding="utf-8")
    with pytest.raises(PlanError, match="refused") as caught:
        load_plan(file)
    assert "lack clean_up" in caught.value.mend
