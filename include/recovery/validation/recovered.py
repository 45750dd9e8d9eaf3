"""What came back and where it is, and what it must be: what the three validations are given (R5.2)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from include.errors import Hopeless
from include.sources.postgres.inventory import Inventory

if TYPE_CHECKING:
    from include.pipeline.store import Bucket
    from include.sources.postgres.login import DatabaseLogin


EXPECTED = "expected.json"
"""What a restore leaves in its run's directory for the validations."""


class NothingExpected(Hopeless):
    """Nobody wrote down what should have come back, or not here."""


@dataclass(frozen=True)
class Expected:
    """What a restore brought back, by its source's own word: the validations compare with it, at any time after.

    `inventory` is of the recovered cluster, or the full backup's own: rows and digest of each table, sequences, large
    objects. It lies in a file that only its owner reads, beside what the restore makes, and never in an XCom or a
    bucket: a digest of a small table tells its content.
    """

    reaches: datetime
    inventory: Inventory | None = None
    tables: tuple[str, ...] = ()
    """Those that came back, `schema.name`, where it was not all of the inventory's."""
    objects: int | None = None
    """How many came back."""
    commit: str | None = None
    """Of the configuration."""
    left_out: tuple[str, ...] = field(default=())
    """What a copy to look at does without, and says so: roles, privileges, a foreign key to a table that stayed."""
    constraints: tuple[str, ...] = ()
    """What the source promises of its rows, as `list_constraints` tells it; empty where nobody noted it."""
    unheld: tuple[str, ...] = ()
    """Keys that the database names and no backup holds: they were written after the last one, and are lost."""

    def write(self, path: Path) -> None:
        """Write it for its owner alone; what was there is replaced whole."""
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(self._document(), file)
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote; raises `NothingExpected` when it is not on this machine."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NothingExpected(
                f"What should have come back is written down in {path}, and that is not here.",
                mend="Let the tasks of a recovery run where they share the directory that BACKUP_SCRATCH names.",
            ) from None
        inventory = document.pop("inventory")
        return cls(
            reaches=datetime.fromisoformat(document["reaches"]),
            inventory=Inventory.from_json(inventory) if inventory else None,
            tables=tuple(document["tables"]),
            constraints=tuple(document["constraints"]),
            objects=document["objects"],
            unheld=tuple(document["unheld"]),
            commit=document["commit"],
            left_out=tuple(document["left_out"]),
        )

    def _document(self) -> dict[str, Any]:
        return {
            "reaches": self.reaches.isoformat(),
            "inventory": self.inventory.to_json() if self.inventory else None,
            "tables": list(self.tables),
            "constraints": list(self.constraints),
            "objects": self.objects,
            "unheld": list(self.unheld),
            "commit": self.commit,
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True)
class Recovered:
    """The places of what came back; what did not come back has none.

    `database` is a login into the restored database; the objects are in `bucket`, their keys behind `prefix`; the
    configuration's checkout is at `configuration`. With `whole` all of the application came, so that it can be started.
    """

    expected: Expected
    database: DatabaseLogin | None = None
    bucket: Bucket | None = None
    prefix: str = ""
    configuration: Path | None = None
    whole: bool = True
