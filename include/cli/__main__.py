"""`python -m include.cli`: the commands, and how an error is told."""

from __future__ import annotations

import sys

import typer
from botocore.exceptions import BotoCoreError

import include.cli
from include.cli import backups, keyring, site
from include.cli.archive import cold, shred, thaw
from include.cli.break_glass import break_glass
from include.cli.doctor import doctor
from include.cli.drills import drills
from include.cli.hold import hold, release
from include.cli.last_good import last_good
from include.cli.place import place
from include.cli.printing import tell
from include.cli.reap import reap
from include.cli.replicate import replicate
from include.cli.restore import restore
from include.cli.retention import retention
from include.cli.setup import setup
from include.cli.stream import stream
from include.cli.validate import validate
from include.cli.verify import accept, verify
from include.cli.windows import windows
from include.errors import BackupError
from include.repository.catalog import NoSuchBackup

FAILED, NOT_FOUND = 1, 3

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=include.cli.__doc__)
app.callback()(place)
app.command("list")(backups.list_)
for command in (
    backups.show,
    verify,
    accept,
    restore,
    backups.decrypt,
    doctor,
    reap,
    replicate,
    stream,
    windows,
    drills,
    last_good,
    validate,
    break_glass,
    setup,
    cold,
    thaw,
    shred,
    retention,
    hold,
    release,
):
    app.command()(command)

keyring_app = typer.Typer(no_args_is_help=True, help=keyring.__doc__)
keyring_app.command("create")(keyring.create)
keyring_app.command("show")(keyring.show)
keyring_app.command("rotate")(keyring.rotate)
keyring_app.command("wrap")(keyring.wrap)
keyring_app.command("retire")(keyring.retire)
keyring_app.command("export")(keyring.export)
keyring_app.command("import")(keyring.import_)
keyring_app.command("public")(keyring.public)
app.add_typer(keyring_app, name="keyring")

site_app = typer.Typer(no_args_is_help=True, help=site.__doc__)
site_app.command("show")(site.show)
site_app.command("switch")(site.switch)
site_app.command("undo")(site.undo)
app.add_typer(site_app, name="site")


def main() -> None:
    """Run the command line; an error is told in words, not as a traceback."""
    try:
        app()
    except NoSuchBackup as missing:
        tell(missing)
        sys.exit(NOT_FOUND)
    except BackupError as failure:
        tell(failure)
        sys.exit(FAILED)
    except (OSError, BotoCoreError) as failure:
        tell(BackupError(f"{failure}.", mend="Mend what it names, then run the same command again."))
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
