"""The disaster-recovery plan: shipped whole, within the RTO, and refused by the line of what is wrong (R5.3, R5.4)."""

from __future__ import annotations

from datetime import timedelta
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
        ("    region: eu-west-1\n", "    region: ''\n", "sites.home.region", "empty"),
        ("    backups: replica\n", "    backups: both\n", "sites.dr.backups", "'primary' or 'replica'"),
        ("  dr:\n", "  D R:\n", "sites.D R", "D R"),
        (
            "    environment: {SYNAPSE_SITE: dr, SYNAPSE_REGION: us-east-1}\n",
            "    environment: {}\n",
            "sites.dr.environment",
            "empty",
        ),
        ("  pointer: state/site/", "  pointer: /", "switches.pointer", "/"),
        ("    ttl: 1 min", "    ttl: 1 moment", "switches.service.ttl", "moment"),
        ('  schedule: "0 8 1 * *"', '  schedule: "0 8 1 *"', "drills.schedule", "cron"),
        ("  region_lost:\n", "  region lost:\n", "scenarios.region lost", "region lost"),
        ("    copies: [replica]\n", "    copies: []\n", "scenarios.region_lost.copies", "empty"),
        (
            "    restores: [database]\n",
            "    restores: [databases]\n",
            "scenarios.table_dropped.restores[0]",
            "'database'",
        ),
        ("    target: last_good", "    target: last_week", "scenarios.ransomware.target", "'latest' or 'last_good'"),
        ("    table: public.attachments", "    table: attachments", "scenarios.table_dropped.table", "attachments"),
        ("stays: [objects, configuration]", "stays: [tables]", "scenarios.database_lost.stays[0]", "'objects'"),
        (
            "stays: [objects, configuration]",
            "stays: [objects, configuration, database]",
            "scenarios.database_lost.stays",
            "not less than",
        ),
        ("    owner: database\n", "    owner: ''\n", "steps.check_data_consistency.owner", "empty"),
        ("  approve:\n", "  agree:\n", "steps.agree", "'activate_plan'"),
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
@pytest.mark.parametrize("part", ["sites", "scenarios"])
def test_a_plan_without_a_site_or_a_scenario_is_refused(tmp_path: Path, part: str) -> None:
    file = tmp_path / "plan.yaml"
    begin = SHIPPED.index(f"\n{part}:") + 1
    end = begin + SHIPPED[begin:].index("\n\n")
    file.write_text(f"{SHIPPED[:begin]}{part}: {{}}\n{SHIPPED[end:]}", encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    assert [problem.where for problem in caught.value.problems] == [part]


@pytest.mark.requirement("R5.3", "R5.4")
def test_what_nobody_says_of_a_scenario_and_the_order_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that `DISASTER_PLAN` names, with its last step first: it is carried out last all the same."""
    begin, last = SHIPPED.index("  activate_plan:"), SHIPPED.index("  clean_up:")
    file = tmp_path / "plan.yaml"
    file.write_text(SHIPPED[:begin] + SHIPPED[last:] + SHIPPED[begin:last].replace("30 min", "31 min", 2))
    monkeypatch.setenv("DISASTER_PLAN", str(file))
    plan = load_plan()
    assert tuple(plan.steps) == TASKS
    # `approve`, and of the two side by side the longer one, have a minute more each.
    assert plan.longest == load_plan(DEFAULT).longest + timedelta(minutes=2)
    assert [name for name, each in plan.scenarios.items() if each.break_glass] == ["airflow_lost"]
    assert ("database_lost", "replica") in plan.subjects()


@pytest.mark.requirement("R5.3")
def test_a_plan_without_one_of_its_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(SHIPPED[: SHIPPED.index("  clean_up:")], encoding="utf-8")
    with pytest.raises(PlanError, match="refused") as caught:
        load_plan(file)
    assert "lack clean_up" in caught.value.mend
