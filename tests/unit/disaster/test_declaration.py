"""Declaring a disaster: what the form leaves empty is the scenario's own, and what nobody means is refused (R5.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.disaster.declaration import Declaration, NotDeclared, declare
from include.disaster.plan import load_plan
from include.recovery.moments.plan import NoTarget

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
PLAN = load_plan()


def declared(**form: str) -> Declaration:
    filled: dict[str, Any] = {"mode": "drill", "scenario": "region_lost", **form}
    return declare(PLAN, **filled, run="20261122t100000000000", declared=NOW, by="ada")


@pytest.mark.requirement("R5.3")
def test_a_drill_is_all_that_the_scenario_says() -> None:
    drill = declared()
    assert (drill.copy, drill.site, drill.target, drill.table) == ("replica", None, "latest", None)
    assert drill.drill
    assert drill.failed == NOW
    assert Declaration.from_json({**drill.to_json(), "parts": ["database"]}) == drill


@pytest.mark.requirement("R5.3", "R5.5")
def test_what_is_named_goes_before_the_scenario() -> None:
    said = declared(
        mode="failover", scenario="database_lost", copy="replica", site="dr", failed="2026-11-22T09:30:00+00:00"
    )
    assert (said.copy, said.site, said.drill) == ("replica", "dr", False)
    assert said.failed == NOW - timedelta(minutes=30)
    assert (said.run, said.declared, said.by) == ("20261122t100000000000", NOW, "ada")
    elsewhere = declared(failed="2026-11-22T11:30:00+02:00")
    assert elsewhere.failed.isoformat() == "2026-11-22T09:30:00+00:00"
    assert declared(scenario="table_dropped", table="public.users").table == "public.users"
    assert declared(scenario="table_dropped").table == "public.attachments"
    assert declared(scenario="ransomware").target == "last_good"


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"scenario": "flood"}, "no scenario 'flood'"),
        ({"mode": "for real"}, "neither a drill nor a failover"),
        ({"copy": "primary"}, "not recovered from the primary"),
        ({"copy": "tape"}, "not recovered from the tape"),
        ({"site": "dr"}, "A drill goes to no site"),
        ({"mode": "failover"}, "none is named"),
        ({"mode": "failover", "site": "moon"}, "moon is named"),
        ({"mode": "failover", "scenario": "table_dropped", "site": "dr"}, "nothing to fail over for"),
        ({"table": "public.users"}, "brings everything back"),
        ({"failed": "2026-11-22T10:30:00+00:00"}, "yet to come"),
    ],
)
def test_what_nobody_may_mean_is_refused(form: dict[str, str], words: str) -> None:
    with pytest.raises(NotDeclared) as caught:
        declared(**form)
    assert words in caught.value.what
    assert caught.value.mend


@pytest.mark.parametrize("form", [{"failed": "yesterday"}, {"failed": "2026-11-22T09:30:00"}, {"target": "soon"}])
def test_a_moment_has_its_offset(form: dict[str, str]) -> None:
    with pytest.raises(NoTarget):
        declared(**form)
