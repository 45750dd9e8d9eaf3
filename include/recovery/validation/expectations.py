"""What was measured against what was expected, told by Great Expectations: a suite for each kind of thing (R5.2).

The server does the measuring, in numbers and digests; Great Expectations sees these, and never a row. One row of its
table is one subject, so that a thousand tables are one expectation, of which it names the subjects that fail it:
0.03 s for five hundred, where an expectation for each took four. It takes seconds to import.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from include.recovery.validation.validation import Check, Kind, Validation

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

Comparison = Literal["equal", "at least", "at most"]
_TOLD = 100
_ROW, _SUBJECT, _EXPECTED, _FOUND = "row", "subject", "expected", "found"


@dataclass(frozen=True)
class Measured:
    """One number or word that was `found` of a subject, and what was `expected`.

    `told` are words for the two, where the values may not be told: a digest of a small table tells its content.
    """

    subject: str
    expected: int | str
    found: int | str
    told: tuple[str, str] | None = None


@dataclass(frozen=True)
class Question:
    """One kind of thing that is asked of many subjects, and the answers.

    `together` is what all of them are called, where there are too many to tell each: those that fail are told one by
    one, up to a hundred, and the others counted.
    """

    name: str
    answers: tuple[Measured, ...]
    comparison: Comparison = "equal"
    together: str = ""


def answer(kind: Kind, began: datetime, questions: Iterable[Question], more: Sequence[Check] = ()) -> Validation:
    """Put every question to Great Expectations; `more` are checks that somebody else made."""
    asked = [question for question in questions if question.answers]
    checks = [check for question, failed in _put(asked) for check in _told(question, failed)]
    return Validation(kind, began, datetime.now(UTC), (*checks, *more))


def _told(question: Question, failed: set[int]) -> Iterator[Check]:
    if not question.together:
        for row, measured in enumerate(question.answers):
            yield _check(question, measured, passed=row not in failed)
        return
    for row in sorted(failed)[:_TOLD]:
        yield _check(question, question.answers[row], passed=False)
    every, well = len(question.answers), len(question.answers) - len(failed)
    yield Check(question.name, question.together, f"all {every}", f"{well} of {every}", not failed)


def _check(question: Question, measured: Measured, *, passed: bool) -> Check:
    expected, found = measured.told or (_words(measured.expected), _words(measured.found))
    than = "" if question.comparison == "equal" else f"{question.comparison} "
    return Check(question.name, measured.subject, f"{than}{expected}", found, passed)


def _words(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _put(questions: Sequence[Question]) -> Iterator[tuple[Question, set[int]]]:
    """Each question, and the numbers of the answers that are not as expected."""
    if not questions:
        return
    with _quiet():
        gx, pd = _imported()
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        source = context.data_sources.add_pandas("measured")
        for number, question in enumerate(questions):
            frame = pd.DataFrame(
                {
                    _ROW: range(len(question.answers)),
                    _SUBJECT: [each.subject for each in question.answers],
                    _EXPECTED: [each.expected for each in question.answers],
                    _FOUND: [each.found for each in question.answers],
                },
                dtype=object,
            )
            asset = source.add_dataframe_asset(f"{number} {question.name}")
            batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
            result = batch.validate(
                _suite(gx, question),
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [_ROW]},
            )
            yield question, _failed(result)


def _suite(gx: Any, question: Question) -> ExpectationSuite:
    """Every subject that was asked about is there, and what was found of it is what was expected."""
    suite = gx.ExpectationSuite(
        name=question.name,
        expectations=[
            gx.expectations.ExpectTableRowCountToEqual(value=len(question.answers)),
            gx.expectations.ExpectColumnValuesToNotBeNull(column=_FOUND),
            _compared(gx, question.comparison),
        ],
    )
    return cast("ExpectationSuite", suite)


def _compared(gx: Any, comparison: Comparison) -> Expectation:
    expectations = gx.expectations
    if comparison == "equal":
        made = expectations.ExpectColumnPairValuesToBeEqual(column_A=_EXPECTED, column_B=_FOUND)
    else:
        greater, smaller = (_FOUND, _EXPECTED) if comparison == "at least" else (_EXPECTED, _FOUND)
        made = expectations.ExpectColumnPairValuesAToBeGreaterThanB(column_A=greater, column_B=smaller, or_equal=True)
    return cast("Expectation", made)


def _failed(result: Any) -> set[int]:
    """The rows that an expectation names; one that could not be asked fails all of them: fail closed."""
    failed: set[int] = set()
    for each in result.results:
        if each.success:
            continue
        named = each.result.get("unexpected_index_list")
        if not named:
            raise AssertionError(f"{each.expectation_config.type} could not be asked: {each.exception_info}")
        failed |= {int(where[_ROW]) for where in named}
    return failed


def _imported() -> tuple[Any, Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # it would tell its makers who uses it
    import great_expectations
    import great_expectations.expectations
    import pandas as pd  # type: ignore[import-untyped]

    return great_expectations, pd


@contextmanager
def _quiet() -> Iterator[None]:
    """It says much that nobody asked for, some of it at levels of its own; what it found is told by us."""
    logger = logging.getLogger("great_expectations")
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
