"""What a backup holds, in numbers, against its source and against the backups before it (R4.5)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from include.policy import Verification
from include.recovery.opened import OpenedBackup
from include.repository.contents import BASE, INVENTORY, REPOSITORY_BUNDLE, STRUCTURE, component_dump, tablespace_tar
from include.repository.manifest import Manifest
from include.sources.postgres.inventory import Inventory

ALL, CLUSTER, REPOSITORY = "all", "cluster", "repository"
Unit = Literal["rows", "objects", "bytes"]
Amounts = Mapping[tuple[str, Unit], int]


@dataclass(frozen=True)
class Sizes:
    """One backup in numbers.

    `tables` are the rows of each leaf table, `homes` the component of each, `objects` and `raw_bytes` by component.
    """

    manifest: Manifest
    inventory: Inventory
    homes: Mapping[str, str]

    @classmethod
    def of(cls, backup: OpenedBackup) -> Sizes:
        """Read them from the manifest and the inventory; raises as `OpenedBackup.read`."""
        document: dict[str, Any] = json.loads(b"".join(backup.read(INVENTORY)))
        homes = {table: component for component, tables in document["components"].items() for table in tables}
        return cls(backup.manifest, Inventory.from_json(document), homes)

    @property
    def object_bytes(self) -> int:
        """Raw bytes in packs."""
        return sum(pack.raw_bytes for pack in self.manifest.packs)

    def misfits(self) -> Iterator[str]:
        """What cannot be true of the source: a dump holds at least a byte for every row, a pack its objects' bytes."""
        if self.manifest.base is None:
            yield from self._misfits_of_dumps()
        if self.object_bytes != self.manifest.objects.raw_bytes:
            yield f"objects: {self.object_bytes} bytes in packs, {self.manifest.objects.raw_bytes} in the source"
        database = self.manifest.database
        if (self.inventory.rows, len(self.inventory.tables)) != (database.rows, database.tables):
            yield f"database: {self.inventory.rows} rows in the inventory, {database.rows} in the manifest"

    @property
    def base_bytes(self) -> int:
        """Raw bytes of the base backup, tablespaces and all; 0 where there is none."""
        base = self.manifest.base
        names = {BASE, *(tablespace_tar(each.oid) for each in base.tablespaces)} if base else set()
        return sum(artifact.raw_bytes for artifact in self.manifest.artifacts if artifact.name in names)

    def amounts(self, homes: Mapping[str, str]) -> Amounts:
        """How much there is in all and of each component, as if each table had been in the component that it has now.

        A table that is in none of `homes` counts where it was. The bytes of a component whose tables were moved to or
        from another are left out: they are known of the whole component only.
        """
        manifest = self.manifest
        found: dict[tuple[str, Unit], int] = defaultdict(int)
        # How much log there is says how long the backup took, and nothing of what there is to back up.
        found[ALL, "bytes"] = manifest.raw_bytes - (manifest.wal.raw_bytes if manifest.wal else 0)
        if manifest.base:
            found[CLUSTER, "bytes"] = self.base_bytes
        found[ALL, "rows"] = self.inventory.rows
        found[ALL, "objects"] = manifest.objects.objects
        for component, rows in self._rows({**self.homes, **homes}).items():
            found[component, "rows"] = rows
        moved = {
            component
            for table, home in self.homes.items()
            if homes.get(table, home) != home
            for component in (home, homes[table])
        }
        for artifact in manifest.artifacts:
            # An index is as long as its keys are, and says nothing that its objects do not.
            if artifact.name == REPOSITORY_BUNDLE:
                found[REPOSITORY, "bytes"] += artifact.raw_bytes
            elif artifact.component not in {STRUCTURE, *moved} and not artifact.name.startswith("objects/"):
                found[artifact.component, "bytes"] += artifact.raw_bytes
        for pack in manifest.packs:
            # Members, not objects: one that did not fit a pack counts for some. An index would have to be read whole.
            found[pack.component, "objects"] += pack.members
            found[pack.component, "bytes"] += pack.raw_bytes
        return found

    def _misfits_of_dumps(self) -> Iterator[str]:
        weights = {artifact.name: artifact.raw_bytes for artifact in self.manifest.artifacts}
        for component, rows in self._rows(self.homes).items():
            if rows > (weight := weights.get(component_dump(component), 0)):
                yield f"{component}: {rows} rows in {weight} bytes"

    def _rows(self, homes: Mapping[str, str]) -> dict[str, int]:
        rows: dict[str, int] = defaultdict(int)
        for table, content in self.inventory.tables.items():
            rows[homes[table]] += content.rows
        return rows


def shrunk(now: Sizes, before: Sequence[Sizes], policy: Verification, components: Collection[str]) -> list[str]:
    """What is suddenly less than usual, one phrase each; `components` are those that the policy has today.

    A component that the policy no longer names is not missed: what is left of it counts elsewhere. One that the policy
    names and this backup lacks has shrunk to nothing.
    """
    present = now.amounts(now.homes)
    said = now.manifest.base.database_bytes if now.manifest.base else 0
    short = now.base_bytes < policy.shrunk_to * said
    usual: dict[tuple[str, Unit], list[int]] = defaultdict(list)
    for earlier in before:
        for measure, amount in earlier.amounts(now.homes).items():
            usual[measure].append(amount)
    hollow = [f"{CLUSTER}: {now.base_bytes:,} bytes of databases that take {said:,} (unlogged tables are in no base)"]
    return (hollow if short else []) + [
        f"{component}: {present.get((component, unit), 0):,} {unit} where {round(middle):,} are usual"
        for (component, unit), amounts in sorted(usual.items())
        if component in {ALL, CLUSTER, REPOSITORY, *components}
        if (middle := median(amounts)) >= _floor(unit, policy)
        if present.get((component, unit), 0) < policy.shrunk_to * middle
    ]


def _floor(unit: Unit, policy: Verification) -> int:
    return policy.shrunk_from_bytes if unit == "bytes" else policy.shrunk_from_items
