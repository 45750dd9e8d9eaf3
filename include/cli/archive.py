"""The archive tier: what is cold, thawing it, and shredding a class's month."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table

from include.cli.place import JsonOption
from include.cli.printing import ERR, OUT, megabytes, print_json
from include.policy import Policy
from include.policy.model import RetrievalTier
from include.repository import cold as glacier
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.repository.manifest import Manifest
from include.repository.shredding import require_key, require_shreddable
from include.repository.shredding import shred as destroy
from include.repository.signed import writer

ArchiveArgument = Annotated[
    str, typer.Argument(metavar="ARCHIVE", help="As `list` shows it: archive-financial-2026-11.")
]
TierOption = Annotated[
    RetrievalTier | None,
    typer.Option("--tier", help="How fast, and how dear (`cold` shows it); the policy's unless given."),
]


def cold(context: typer.Context, as_json: JsonOption = False) -> None:
    """What of each archive is in Glacier, and what having it back would cost and take."""
    policy: Policy = context.obj.policy()
    found = glacier.report(context.obj.catalog(), policy)
    retrievals = policy.storage.cold.retrievals
    if as_json:
        within = {name: each.within.total_seconds() for name, each in retrievals.items()}
        print_json({"archives": [asdict(each) for each in found], "within_seconds": within})
        return
    columns = [f"{name} ({each.within})" for name, each in retrievals.items()]
    table = Table(
        Column("archive", no_wrap=True), "objects", "stored", "cold", "of it", *columns, box=None, pad_edge=False
    )
    for each in found:
        prices = [f"{each.usd[name]:,.2f} USD" if each.cold_objects else "-" for name in retrievals]
        table.add_row(
            *(each.archive, f"{each.objects:,}", megabytes(each.bytes)),
            *(f"{each.cold_objects:,}", megabytes(each.cold_bytes), *prices),
        )
    OUT.print(table if table.rows else "There are no archives in this bucket.")


def thaw(
    context: typer.Context,
    archive: ArchiveArgument,
    *,
    speed: TierOption = None,
    wait: Annotated[bool, typer.Option(help="Wait until all of it can be read.")] = True,
) -> None:
    """Retrieve an archive from Glacier, so that it can be read for as long as the policy says (`storage.cold`)."""
    catalog: Catalog = context.obj.catalog()
    manifest = catalog.get(BackupId.parse(archive))
    retrieve(catalog, manifest, context.obj.policy(), speed=speed, wait=wait)


def retrieve(
    catalog: Catalog,
    manifest: Manifest,
    policy: Policy,
    *,
    speed: RetrievalTier | None = None,
    wait: bool = True,
) -> None:
    """Have an archive readable, telling on standard error how it stands; one that is warm is at once."""
    require_key(catalog, manifest.backup)
    stands = glacier.look(catalog.bucket, manifest)
    if not stands.is_readable:
        stands = glacier.request(catalog.bucket, manifest, policy, speed)
    if not stands.is_readable and wait:
        glacier.wait(catalog.bucket, manifest, policy, speed, report=lambda each: ERR.print(f"{each}", soft_wrap=True))
    else:
        ERR.print(f"{stands}", soft_wrap=True)


def shred(
    context: typer.Context,
    archive: ArchiveArgument,
    *,
    because: Annotated[str, typer.Option(help="Why; it is kept, with who says it.")],
    both: Annotated[bool, typer.Option("--both", help="In the replica's bucket, too.")] = False,
) -> None:
    """Destroy the data key of an archive, for good: a class's month that nobody may have any more.

    Nothing else is affected. It leaves a signed record, and bytes that nobody can read, until retention removes them.
    """
    backup, locks = BackupId.parse(archive), context.obj.policy().storage.object_lock
    catalogs = [context.obj.catalog(), *([context.obj.replica()] if both else [])]
    for catalog in catalogs:
        require_shreddable(catalog, backup)
    for catalog in catalogs:
        destroyed = destroy(
            *(catalog, backup),
            by=writer(),
            because=because,
            now=datetime.now(UTC),
            bypass_governance=locks == "governance",
        )
        OUT.print(
            f"{backup} is shredded in {catalog.bucket}: {destroyed} wraps of its key are destroyed.", soft_wrap=True
        )
    if not both:
        ERR.print("The replica may still have it: --both shreds it there, too.")
