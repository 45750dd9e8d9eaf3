"""Which tests prove which item of docs/requirements.md: a pytest plugin records it, and `make requirements` prints it.

A test names its items: `@pytest.mark.requirement("R4.3")`. What runs found is in `.test-results/requirements.json`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".test-results" / "requirements.json"
ITEM = re.compile(r"R\d+(?:\.\d+)?")


class Matrix:
    """Collects the outcome of every marked test of a run."""

    def __init__(self) -> None:
        self.items: dict[str, list[str]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marked = [name for mark in item.iter_markers("requirement") for name in mark.args]
            if wrong := [name for name in marked if not ITEM.fullmatch(name)]:
                raise pytest.UsageError(f"{item.nodeid}: {wrong[0]!r} is no item of docs/requirements.md")
            if marked:  # with its reports it reaches the process that counts them, where several run the tests
                item.user_properties.append(("requirements", marked))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (marked := dict(report.user_properties).get("requirements")) is None:
            return
        self.items[report.nodeid] = list(marked)
        told = report.when == "call" or not report.passed
        # A failure in set-up or tear-down outweighs the call's success.
        if told and self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.outcomes or hasattr(session.config, "workerinput"):
            return
        # A run of everything is the whole truth; a run of some tests adds to what is known.
        whole = session.config.args_source == pytest.Config.ArgsSource.TESTPATHS and not session.config.option.keyword
        recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() and not whole else {}
        recorded |= {
            nodeid: {"items": self.items[nodeid], "outcome": outcome} for nodeid, outcome in self.outcomes.items()
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(recorded, indent=1, sort_keys=True))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Matrix(), "requirements-matrix")


def documented() -> list[str]:
    """Every item of docs/requirements.md, in its order."""
    text = (ROOT / "docs" / "requirements.md").read_text()
    return sorted(set(ITEM.findall(text)), key=lambda item: [int(part) for part in item[1:].split(".")])


def main() -> int:
    tests: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for nodeid, result in json.loads(RESULTS.read_text()).items():
        for item in result["items"]:
            tests[item].append((nodeid, result["outcome"]))
    proved = [item for item in documented() if tests[item]]
    for item in documented():
        print(f"{item:6}" + ("" if tests[item] else "no test yet"))
        for nodeid, outcome in sorted(tests[item]):
            print(f"       {outcome:7} {nodeid}")
    failed = sorted({nodeid for found in tests.values() for nodeid, outcome in found if outcome != "passed"})
    print(f"\n{len(proved)} of {len(documented())} items have tests; {len(failed)} of those tests did not pass.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
