"""Looking at what came back as who depends on it will: its data, the application, the running service (R5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from include.cli.moment import absolute
from include.cli.place import JsonOption, scratch_directory, server
from include.cli.printing import OUT, print_json
from include.cli.restore import WHERE, objects_bucket
from include.policy import Policy
from include.recovery.validation.recovered import Expected, Recovered
from include.recovery.validation.validation import KINDS, Kind, Validation

FAILED = 1


def validate(
    context: typer.Context,
    kind: Annotated[Literal["data_consistency", "application_state", "service_health", "all"], typer.Argument()],
    *,
    expected: Annotated[
        Path, typer.Option(metavar="FILE", help="What must be there, as `restore --expected` wrote it down.")
    ],
    database: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The restored database, on the server that PGHOST, PGPORT, PGUSER and PGPASSWORD name.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(metavar="BUCKET", help="The bucket with the restored objects.", rich_help_panel=WHERE)
    ] = None,
    under: Annotated[
        str, typer.Option(metavar="PREFIX", help="What stands before each object's key.", rich_help_panel=WHERE)
    ] = "",
    objects_endpoint_url: Annotated[
        str | None, typer.Option(help="Of that bucket, when it is elsewhere.", rich_help_panel=WHERE)
    ] = None,
    objects_profile: Annotated[
        str | None,
        typer.Option(help="An AWS profile for that bucket, when its credentials differ.", rich_help_panel=WHERE),
    ] = None,
    configuration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The restored checkout.", rich_help_panel=WHERE)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at what was restored, say of each check what was found, and end with 1 when any failed.

    data_consistency: rows and digests, keys, foreign keys, sequences, indexes. application_state: every object that the
    database names, configuration and schema, invariants. service_health: the application is started on it, and used.
    """
    told = Expected.read(absolute(expected) or expected)
    recovered = Recovered(
        expected=told,
        database=server().with_database(database) if database else None,
        bucket=objects_bucket(context.obj, objects, objects_endpoint_url, objects_profile) if objects else None,
        prefix=under,
        configuration=absolute(configuration),
        whole=bool(database and objects and configuration and not told.tables),
    )
    kinds: tuple[Kind, ...] = KINDS if kind == "all" else (kind,)
    failed = False
    results = []
    for validation in _validations(kinds, recovered, context.obj.policy()):
        failed = failed or bool(validation.failed)
        results.append(validation.to_json())
        if not as_json:
            OUT.print(f"{validation.kind}: {len(validation.failed)} of {len(validation.checks)} checks failed")
            for line in validation.lines():
                OUT.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(FAILED)


def _validations(kinds: tuple[Kind, ...], recovered: Recovered, policy: Policy) -> Iterator[Validation]:
    """One after the other: the application writes, and what it wrote would be compared."""
    if "data_consistency" in kinds:
        from include.recovery.validation.consistency import check_data_consistency  # noqa: PLC0415 - nine seconds

        yield check_data_consistency(recovered, policy)
    if "application_state" in kinds:
        from include.recovery.validation.application import check_application_state  # noqa: PLC0415 - the same

        yield check_application_state(recovered, policy)
    if "service_health" in kinds:
        from include.recovery.validation.service import check_service_health  # noqa: PLC0415 - only where it is asked

        with scratch_directory() as scratch:
            yield check_service_health(recovered, policy, scratch=scratch)
