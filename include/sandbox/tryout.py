"""`make airflow`: the whole sandbox to try, until Ctrl-C: Airflow over a seeded Synapse, and everybody's mailbox."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from include.errors import BackupError
from include.sandbox.airflow import ADMIN, APPROVER, AirflowServices
from include.sandbox.application import SynapseService
from include.sandbox.installation import Installation
from include.sandbox.mailbox import Mail, Mailbox
from include.sandbox.stage import installed, out, stage, step
from include.sandbox.terminal import write_terminal

DAG = "full_backup"
LOOK_SECONDS = 1.0


def main() -> int:
    """Run until Ctrl-C; 0 when that ended it, 1 when something failed. Nothing of it stays behind."""
    try:
        with stage("airflow") as directory, installed(directory) as installation:
            _stand(directory, installation)
    except KeyboardInterrupt:
        out.print("\nStopped; everything that was made is removed.")
        return 0
    except (BackupError, TimeoutError) as failure:
        out.print(f"\n[bold red]It failed, and is stopped.[/] {escape(str(failure))}")
        return 1
    raise AssertionError  # it stands until something is raised


def _stand(directory: Path, installation: Installation) -> None:
    with ExitStack() as running:
        mailbox = running.enter_context(Mailbox(directory / "mails", arrived=_tell))
        services = AirflowServices(
            directory / "airflow",
            metadata=installation.postgres.superuser.with_database("airflow"),
            connections={**installation.connections(), "synapse_notifications": mailbox.connection()},
            variables=installation.variables(),
            triggerer=True,
        )
        with step("Starting Synapse's service"):
            live = running.enter_context(installation.service(directory / "service"))
        with step("Starting Airflow: API server, scheduler, DAG processor, triggerer"):
            running.enter_context(services)
        with step(f"Unpausing {DAG}, whose latest slot runs now"):
            services.client().unpause(DAG)
        _introduce(services, mailbox, installation, live)
        while True:
            services.pids()  # raises when one has ended
            time.sleep(LOOK_SECONDS)


def _introduce(services: AirflowServices, mailbox: Mailbox, installation: Installation, live: SynapseService) -> None:
    """Where it is, who may enter, and what to try first; paths and addresses stay whole, to be copied."""
    table = Table.grid(padding=(0, 2))
    for name, value in {
        "address": services.url,
        "user": ADMIN,
        "password": services.password,
        "who approves": f"{APPROVER} / {services.passwords[APPROVER]}",
        "mails": str(mailbox.directory),
        "Synapse": f"{live.url}/health",
        "in a terminal": f". {write_terminal(installation, mailbox.directory.parent, services.environment)}",
    }.items():
        table.add_row(f"[bold]{name}[/]", escape(value))
    out.print()
    out.print(table, soft_wrap=True)
    out.print("\n[bold]Try first[/]", soft_wrap=True)
    for line in (
        f"1. Open {services.url}/dags/{DAG} and watch the run of the latest slot; its report arrives as a mail here.",
        "2. Trigger the DAG, with a note why: the backup is one of its own, and its report says who wanted it and why.",
        f"3. chmod 644 {installation.keyring} and trigger again: read the alert, follow its link to the runbook,"
        " mend it (chmod 600) and clear the failed tasks.",
        "4. docs/training.md: exercises with answers; for most of them type the line above in a terminal of your own.",
    ):
        out.print(escape(line), soft_wrap=True)
    out.print("\nCtrl-C stops everything and removes it.\n")


def _tell(mail: Mail) -> None:
    out.print(
        f"[bold]mail[/] to {escape(', '.join(mail.recipients))}: {escape(mail.subject)}\n"
        f"  [dim]{escape(str(mail.file))}[/]",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
