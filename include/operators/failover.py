"""What a failover asks and a drill does not: somebody else's yes, and what is at the site now (R5.3, R7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.errors import BackupError
from include.operators.approval import Approve, NotAllowedOver
from include.operators.copies import OTHER_ANSWERS_WITHIN, catalogs
from include.operators.declared import PLAN, told_by, told_declaration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.sdk import Context

    from include.disaster.declaration import Declaration
    from include.disaster.plan import DisasterPlan, Site
    from include.operators.run import Surroundings


class ApproveFailover(Approve):
    """Ask a person, plan and forecast before them, whether to fail over. In a drill nobody is asked (R5.3)."""

    def needless(self, context: Context) -> str:
        """Of a drill."""
        if told_declaration(context).drill:
            return "A drill touches nothing that is live: nobody has to approve."
        return ""


def told_active(here: Surroundings, plan: DisasterPlan, declared: Declaration) -> str:
    """The site that is active; empty where no bucket that answers tells."""
    from include.disaster.site import active_site  # noqa: PLC0415

    try:
        return active_site(plan, catalogs(here, declared.copy)).site
    except BackupError:
        return ""


def require_not_become_active(here: Surroundings, plan: DisasterPlan, context: Context) -> None:
    """Raise `NotAllowedOver` where users were led to the site after somebody approved that it is replaced."""
    declared, told = told_declaration(context), told_by(context, PLAN)["active"]
    if told != declared.site and told_active(here, plan, declared) == declared.site:
        raise NotAllowedOver(
            f"{declared.site} has become the active site since the plan was made: what users write there would go.",
            mend=f"`python -m include.cli site show` tells how that came to be. Is it to be replaced? Clear `{PLAN}` "
            f"with all that comes after it.",
        )


def told_of_site(plan: DisasterPlan, declared: Declaration, active: str, stays: Sequence[str]) -> Iterator[str]:
    """What whoever approves has to know of the site: whether users are there, what has the place of what comes."""
    assert declared.site is not None  # noqa: S101 - a failover goes to one
    site = plan.sites[declared.site]
    if active == declared.site:
        yield f"site           {declared.site}; THE ACTIVE SITE: users may be writing there"
    else:
        yield f"site           {declared.site}; {f'{active} is active' if active else 'which is active is not known'}"
    if stays:
        yield f"stays          {' and '.join(stays)}, as they are there: nothing says that they are lost"
    yield from _told_of_database(site)
    if "objects" not in stays:
        yield from _told_of_bucket(site)


def _told_of_database(site: Site) -> Iterator[str]:
    import psycopg  # noqa: PLC0415

    from include.operators import connections  # noqa: PLC0415
    from include.recovery.scratch import APPLICATION  # noqa: PLC0415

    try:
        login = connections.database_login(site.database_connection)
        with login.connect(application_name=APPLICATION, autocommit=True) as session:
            query = "SELECT count(*) FROM pg_database WHERE datname = %s"
            (there,) = session.execute(query, [site.database]).fetchone() or (0,)
    except (BackupError, psycopg.Error) as error:
        said = error.what if isinstance(error, BackupError) else type(error).__name__
        yield f"there now      its server does not answer: {said}"
    else:
        live = f"a database {site.database} LIVES there: what is newer in it than `reaches` goes aside with it"
        yield f"there now      {live if there else f'its server answers, and has no database {site.database}'}"


def _told_of_bucket(site: Site) -> Iterator[str]:
    from include.operators import connections  # noqa: PLC0415

    try:
        bucket = connections.bucket(site.objects_connection, stall_limit=OTHER_ANSWERS_WITHIN)
        versioned = bucket.is_versioned()
    except BackupError as error:
        yield f"its objects    the bucket does not answer: {error.what}"
    else:
        unkept = "KEEPS NO VERSIONS: the restore overwrites nothing there, and is refused if it would"
        yield f"its objects    {bucket} {'keeps what is overwritten, as versions' if versioned else unkept}"
