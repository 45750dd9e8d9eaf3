"""Bringing a backup back, all of it or a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer
from rich.markup import escape

from include.cli.archive import retrieve
from include.cli.moment import absolute, full_instead, restore_moment
from include.cli.place import (
    DespiteOption,
    JsonOption,
    Place,
    find_sound_backup,
    scratch_directory,
    server,
)
from include.cli.printing import OUT, print_json, progress_bar
from include.errors import BackupError
from include.pipeline.store import Bucket
from include.recovery.configuration import restore_configuration, return_files
from include.recovery.database import restore_database, restore_part
from include.recovery.moments.restore import Chosen, Destinations
from include.recovery.objects import restore_objects, return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.replacement import kept_database_name, kept_name
from include.recovery.selection import nothing_matches, some_of
from include.recovery.validation.recovered import Expected
from include.recovery.whole import expected_of
from include.repository.leases import reading
from include.repository.manifest import moment_text

WHERE, PART, OVER, MOMENT = "Where to", "Only a part", "Over what exists", "A moment between the backups"


def restore(
    context: typer.Context,
    backup: Annotated[
        str | None,
        typer.Argument(
            metavar="[BACKUP]",
            help="An id as `list` shows it, or `latest`: the newest full backup whose verification did not fail.",
        ),
    ] = None,
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="A moment, in place of a backup: 2026-11-22T10:37:12+00:00, a backup's id (its consistency point), a "
            "restore point's name, or latest.",
            rich_help_panel=MOMENT,
        ),
    ] = None,
    only_plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what it takes and what it reaches; write nothing.", rich_help_panel=MOMENT),
    ] = False,
    data_directory: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The whole cluster of that moment, stopped, as PATH/data.",
            rich_help_panel=MOMENT,
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A database of this name, on the server that PGHOST, PGPORT, PGUSER and PGPASSWORD name.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(metavar="BUCKET", help="The objects into this bucket.", rich_help_panel=WHERE)
    ] = None,
    under: Annotated[
        str, typer.Option(metavar="PREFIX", help="Put this before each object's key: restored/", rich_help_panel=WHERE)
    ] = "",
    objects_endpoint_url: Annotated[
        str | None, typer.Option(help="Of that bucket, when it is elsewhere.", rich_help_panel=WHERE)
    ] = None,
    objects_profile: Annotated[
        str | None,
        typer.Option(help="An AWS profile for that bucket, when its credentials differ.", rich_help_panel=WHERE),
    ] = None,
    configuration: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The configuration checkout at this path.", rich_help_panel=WHERE),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="NAME", help="A component, as `show` lists them.", rich_help_panel=PART),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="TABLE",
            help="A table, schema.table, or a glob ('public.messages_*'). A partitioned one means all its partitions.",
            rich_help_panel=PART,
        ),
    ] = None,
    object_: Annotated[
        list[str] | None, typer.Option("--object", metavar="KEY", help="An object.", rich_help_panel=PART)
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option("--prefix", metavar="PREFIX", help="Every object whose key begins so.", rich_help_panel=PART),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="A file of the configuration, below PATH, or a glob ('environment/*.env').",
            rich_help_panel=PART,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Take the place of what exists. It is kept: a database and a checkout under the name "
            "NAME_replaced_<time>, files as copies there, objects as versions of the bucket.",
            rich_help_panel=OVER,
        ),
    ] = False,
    to_look_at: Annotated[
        bool,
        typer.Option(
            "--to-look-at",
            help="The database as a copy to look at: it belongs to the login, which need not be a superuser's, and "
            "comes without roles and privileges.",
            rich_help_panel=MOMENT,
        ),
    ] = False,
    expected: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write down what must be there afterwards, for `validate`. Keep it to yourself: a digest of a small "
            "table tells its content.",
            rich_help_panel=MOMENT,
        ),
    ] = None,
    or_full: Annotated[
        bool,
        typer.Option(
            "--or-full",
            help="Where base and log do not lead there: the newest full backup before it. What that loses is told.",
            rich_help_panel=MOMENT,
        ),
    ] = False,
    despite: DespiteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup or a moment back: database, objects, configuration, whichever have a place named for them.

    Without further options all of it, into an empty place: a new database, an empty bucket, an unused path. The
    database is restored beside what exists, with its roles, compared with what was backed up, and gets its name when it
    is equal.

    With --component, --table, --object, --prefix or --file only these (each may be given several times, and all that
    are given come). Tables come into a new database, to look at, to compare with, and to copy from; they come with
    their types, indexes, constraints, triggers and sequences, and belong to the login. Roles and privileges do not
    come, nor foreign keys to tables that do not; what is left out is listed. Objects and files come into a bucket or
    checkout in use: what is there already and the same is left.

    With --to it is any moment between the snapshots' and the increments': the cluster is recovered in a temporary place
    (TMPDIR needs room for it), and the database copied out of it. The plan is told first; --plan tells it, and no more.

    Nothing that exists is overwritten, unless --overwrite says so. It ends the sessions in a database that it replaces.
    """
    asked = _Asked(
        component or [],
        table or [],
        object_ or [],
        prefix or [],
        file or [],
        under=under,
        overwrite=overwrite,
    )
    backup, to = _aim(context.obj, backup, to, or_full=or_full)
    if only_plan and or_full and to is None:
        return
    if to is not None:
        asked.must_fit(database=database or data_directory, objects=objects, configuration=configuration)
        into = Destinations(
            server=server() if database else None,
            database=database,
            data_directory=absolute(data_directory),
            objects=objects_bucket(context.obj, objects, objects_endpoint_url, objects_profile) if objects else None,
            configuration=absolute(configuration),
            overwrite=overwrite,
            owned=not to_look_at,
        )
        chosen = Chosen(asked.components, asked.tables, asked.keys, asked.prefixes, asked.files, asked.under)
        restore_moment(context.obj, to, into, chosen, only_plan=only_plan, as_json=as_json, expected=absolute(expected))
        return
    if only_plan or data_directory:
        raise typer.BadParameter("--plan and --data-directory go with --to.")
    asked.must_have_places(database=database, objects=objects, configuration=configuration)
    catalog, policy = context.obj.catalog(), context.obj.policy()
    manifest = find_sound_backup(catalog, str(backup), despite=despite)
    if manifest.type == "archive":
        retrieve(catalog, manifest, policy)
    facts: dict[str, Any] = {"id": manifest.id, "as_of": manifest.consistency_point.time.isoformat()}
    with (
        scratch_directory() as scratch,
        reading(catalog, [manifest.id], policy, what="restore"),
        progress_bar(f"restoring {manifest.id}", manifest.raw_bytes, as_json) as progress,
    ):
        opened = OpenedBackup(catalog, manifest, policy=policy.pipeline, progress=progress)
        asked.must_know_components(opened, database=database, objects=objects, configuration=configuration)
        if configuration:
            facts["configuration"] = _configuration(opened, asked, configuration.absolute())
        if database:
            facts["database"] = _database(opened, asked, database, scratch, to_look_at=to_look_at)
        if objects:
            target = objects_bucket(context.obj, objects, objects_endpoint_url, objects_profile)
            facts["objects"] = _objects(opened, asked, target)
        facts["seconds"] = round(progress.usage().seconds, 1)
        if expected is not None:
            _expected(opened, asked, facts).write(expected)
    if as_json:
        print_json(facts)
        return
    OUT.print(
        f"{manifest.id} is restored, as of {moment_text(manifest.consistency_point.time)}, in {facts['seconds']} s:"
    )
    for line in _told(facts):
        OUT.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def _aim(place: Place, backup: str | None, to: str | None, *, or_full: bool) -> tuple[str | None, str | None]:
    """A backup, or a moment; where no base and log lead to the moment, the full backup in its place."""
    if (backup is None) == (to is None):
        raise typer.BadParameter("Name a backup, or a moment with --to.")
    if or_full and to is None:
        raise typer.BadParameter("--or-full goes with --to.")
    if to is not None and or_full and (full := full_instead(place, to)) is not None:
        return full, None
    return backup, to


@dataclass(frozen=True)
class _Asked:
    """What the options name."""

    components: Sequence[str]
    tables: Sequence[str]
    keys: Sequence[str]
    prefixes: Sequence[str]
    files: Sequence[str]
    under: str
    overwrite: bool

    def must_have_places(self, *, database: str | None, objects: str | None, configuration: Path | None) -> None:
        """Raise for an option that has nowhere to go."""
        if not (database or objects or configuration):
            raise typer.BadParameter("Name at least one of --database, --objects and --configuration.")
        self.must_fit(database=database, objects=objects, configuration=configuration)

    def must_fit(self, *, database: str | Path | None, objects: str | None, configuration: Path | None) -> None:
        """Raise for an option whose place is not named."""
        for given, option, place, there in (
            (self.tables, "--table", "--database", database),
            (self.keys, "--object", "--objects", objects),
            (self.prefixes, "--prefix", "--objects", objects),
            (self.under, "--under", "--objects", objects),
            (self.files, "--file", "--configuration", configuration),
        ):
            if given and not there:
                raise typer.BadParameter(f"{option} needs {place}.")

    def must_know_components(
        self, opened: OpenedBackup, *, database: str | None, objects: str | None, configuration: Path | None
    ) -> None:
        """Raise for a component that none of the places that are named would get."""
        for place, there, what in (
            (database, opened.database_components(), "database"),
            (objects, opened.object_components(), "objects"),
            (configuration, opened.configuration_components(), "configuration"),
        ):
            if place and not there:
                raise nothing_of(opened.manifest.id, what)
        known = [
            *(opened.database_components() if database else []),
            *(opened.object_components() if objects else []),
            *(opened.configuration_components() if configuration else []),
        ]
        for name in self.components:
            if name not in known:
                raise nothing_matches(name, known, what="component for these places called")
        for place, names in (
            (database and "--database", (*self.tables, *self.of(opened.database_components()))),
            (objects and "--objects", (*self.keys, *self.prefixes, *self.of(opened.object_components()))),
            (configuration and "--configuration", (*self.files, *self.of(opened.configuration_components()))),
        ):
            if place and self.a_part and not names:
                raise typer.BadParameter(f"A part is asked for, and nothing of it is for {place}: leave that out.")

    @property
    def a_part(self) -> bool:
        """Whether anything less than all is asked for."""
        return bool(self.components or self.tables or self.keys or self.prefixes or self.files)

    def of(self, there: Sequence[str]) -> list[str]:
        """The components asked for that are among these."""
        return [name for name in self.components if name in there]


def nothing_of(backup: str, what: str) -> BackupError:
    """The error for a place that nothing of the backup would go to: an archive is of one class alone."""
    return BackupError(
        f"{backup} has no {what}.", mend=f"Leave --{what} out; `python -m include.cli show {backup}` lists what it has."
    )


def _database(opened: OpenedBackup, asked: _Asked, name: str, scratch: Path, *, to_look_at: bool) -> dict[str, Any]:
    if asked.a_part or to_look_at or opened.manifest.type == "archive":
        restored = restore_part(
            opened,
            server=server(),
            name=name,
            scratch=scratch,
            components=asked.of(opened.database_components()) if asked.a_part else opened.database_components(),
            tables=asked.tables,
        )
    else:
        keep_as = kept_database_name(name) if asked.overwrite else None
        restored = restore_database(opened, server=server(), name=name, scratch=scratch, keep_as=keep_as)
    return {
        "name": restored.name,
        "tables": restored.tables,
        "rows": restored.rows,
        "left_out": list(restored.left_out),
        "replaced": restored.replaced,
    }


def _expected(opened: OpenedBackup, asked: _Asked, facts: dict[str, Any]) -> Expected:
    """What must be there afterwards, by the backup's own word."""
    database, objects = facts.get("database"), facts.get("objects")
    return expected_of(
        opened,
        server=server() if database else None,
        database=database["name"] if database else None,
        part=asked.a_part,
        objects=objects["objects"] + objects["unchanged"] if objects else None,
        commit=facts["configuration"]["commit"] if "configuration" in facts else None,
        left_out=database["left_out"] if database else (),
    )


def objects_bucket(place: Place, name: str, endpoint_url: str | None, profile: str | None) -> Bucket:
    """The bucket for objects that the options name: where the backups are, unless they say otherwise."""
    return Bucket(
        boto3.Session(profile_name=profile),
        name,
        region=place.region_name(),
        endpoint_url=endpoint_url or place.endpoint_url,
    )


def _objects(opened: OpenedBackup, asked: _Asked, target: Bucket) -> dict[str, Any]:
    if not (asked.a_part or asked.under or asked.overwrite):
        return {"bucket": target.name, "objects": restore_objects(opened, target), "unchanged": 0, "replaced": {}}
    returned = return_objects(
        opened,
        target,
        components=asked.of(opened.object_components()),
        keys=asked.keys,
        prefixes=asked.prefixes,
        under=asked.under,
        overwrite=asked.overwrite,
    )
    return {
        "bucket": target.name,
        "objects": returned.written,
        "unchanged": returned.unchanged,
        "replaced": returned.replaced,
    }


def _configuration(opened: OpenedBackup, asked: _Asked, path: Path) -> dict[str, Any]:
    keep_as = path.with_name(kept_name(path.name)) if asked.overwrite else None
    if not asked.a_part:
        commit = restore_configuration(opened, path, keep_as=keep_as)
        kept = str(keep_as) if keep_as and keep_as.exists() else None
        return {"path": str(path), "commit": commit, "replaced": kept}
    returned = return_files(
        opened,
        path,
        patterns=asked.files,
        components=asked.of(opened.configuration_components()),
        keep_in=keep_as,
    )
    return {
        "path": str(path),
        "commit": returned.commit,
        "files": list(returned.written),
        "unchanged": list(returned.unchanged),
        "replaced": str(returned.kept_in) if returned.kept_in else None,
    }


def _told(facts: dict[str, Any]) -> Iterator[str]:
    if database := facts.get("database"):
        yield (
            f"database {database['name']}: {database['tables']} tables, {database['rows']:,} rows, "
            "equal to the source's"
        )
        if database["replaced"]:
            yield f"  the database that was there is kept as {database['replaced']}"
        for name in database["left_out"]:
            yield f"  left out: {name}"
    if objects := facts.get("objects"):
        yield f"objects in {objects['bucket']}: {objects['objects']:,}, each equal to the source's"
        if objects["unchanged"]:
            yield f"  {objects['unchanged']:,} were there already, and the same"
        if replaced := objects["replaced"]:
            kept = some_of([f"{key} (version {version})" for key, version in replaced.items()])
            yield f"  {len(replaced)} were overwritten, and the bucket keeps what they were: {kept}"
    if configuration := facts.get("configuration"):
        what = f"files {some_of(configuration['files']) or 'none'} as of" if "files" in configuration else ""
        yield f"configuration in {configuration['path']}: {what} commit {configuration['commit']}"
        if same := configuration.get("unchanged"):
            yield f"  {some_of(same)}: there already, and the same"
        if configuration["replaced"]:
            yield f"  what was there is kept in {configuration['replaced']}"
