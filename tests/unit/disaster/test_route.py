"""Which way a recovery takes (R5.3): base and log, or a full backup that is sound and not later than the target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from include.disaster import route as routes
from include.disaster.route import Route, SiteBusy, go, plan_route, reopen_route
from include.policy import load_policy
from include.recovery.moments.places import Places
from include.recovery.moments.plan import NoTarget, Target, Unreachable
from include.repository.catalog import Catalog
from include.repository.manifest import Manifest, ManifestRefused
from include.sandbox.postgres import PostgresServer
from tests.manifests import MIDNIGHT, make

POLICY = load_policy()
OLD, MIDDLE, NEW = (make(day) for day in (0, 1, 2))
SNAPSHOT = make(
    point=MIDNIGHT + timedelta(days=1, hours=12), id="snapshot-20261123T120000Z", type="snapshot"
)  # between MIDDLE and NEW, and its chain is broken


class Held:
    """A catalog of full backups; of some the newest verification failed, some manifests are refused."""

    def __init__(self, *manifests: Manifest, failed: str = "", refused: int = 0) -> None:
        self._entries: list[Any] = [
            SimpleNamespace(manifest=one, verification=SimpleNamespace(failed=[1] if one.id == failed else []))
            for one in manifests
        ]
        self._entries += [SimpleNamespace(manifest=None, verification=None)] * refused

    def entries(self, type_: str) -> list[Any]:
        assert type_ == "full"
        return self._entries

    def get(self, backup: object) -> Manifest:
        return next(one for one in (*(one.manifest for one in self._entries), SNAPSHOT) if one.backup == backup)


def way(held: Held, target: str, found: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Route:
    """The route, where `found` is what base and log lead to, or why they lead nowhere."""

    def plan(*_: object, **__: object) -> object:
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(reaches=found)

    monkeypatch.setattr(routes, "plan_recovery", plan)
    return plan_route(cast("Catalog", held), Target.parse(target), POLICY, scratch=tmp_path)


BROKEN = Unreachable("The chain is broken.", mend="Take another.")


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("held", "target", "taken"),
    [
        (Held(OLD, NEW, MIDDLE), "latest", NEW),
        (Held(OLD, MIDDLE, NEW, failed=NEW.id, refused=1), "latest", MIDDLE),
        (Held(OLD, MIDDLE, NEW), "2026-11-23T00:00:07+00:00", MIDDLE),  # the very second of its point
        (Held(OLD, MIDDLE, NEW), "2026-11-23T00:00:06+00:00", OLD),
        (Held(OLD, MIDDLE, NEW), MIDDLE.id, MIDDLE),
        (Held(OLD, MIDDLE, NEW), SNAPSHOT.id, MIDDLE),  # which is no full backup: the newest one before it
    ],
)
def test_where_the_chain_is_broken_the_newest_sound_full_backup_comes_back(
    held: Held, target: str, taken: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    route = way(held, target, BROKEN, monkeypatch, tmp_path)
    assert (route.full, route.because, route.reaches) == (taken, BROKEN.what, taken.consistency_point.time)
    assert route.files_as_of == taken.consistency_point.objects_as_of
    assert f"because        {BROKEN.what}" in route.lines()
    again = reopen_route(route.to_json(), cast("Catalog", held), POLICY)
    assert (again.full, again.because) == (taken, BROKEN.what)
    refused = way(held, target, ManifestRefused("It is forged.", mend="Look."), monkeypatch, tmp_path)
    assert refused.full == taken


@pytest.mark.requirement("R5.3")
@pytest.mark.parametrize(
    ("target", "found"),
    [
        (MIDDLE.id, BROKEN),  # it is there, and its verification failed: no other is taken for it
        ("2026-11-22T00:00:06+00:00", BROKEN),
        ("latest", NoTarget("Nobody can mean that.", mend="Say when.")),
    ],
)
def test_what_nothing_leads_to_is_told_as_it_was(
    target: str, found: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(type(found)) as caught:
        way(Held(OLD, MIDDLE, NEW, failed=MIDDLE.id), target, found, monkeypatch, tmp_path)
    assert caught.value is found


@pytest.mark.requirement("R5.3", "R5.5")
@pytest.mark.parametrize(
    ("target", "reaches", "full"),
    [
        ("latest", MIDNIGHT + timedelta(days=2, seconds=6), NEW),
        ("latest", MIDNIGHT + timedelta(days=2, seconds=7), None),  # as far: the log goes first
        ("2026-11-24T12:00:00+00:00", MIDNIGHT + timedelta(days=1), None),
    ],
)
def test_to_the_latest_moment_whatever_is_newer(
    target: str, reaches: datetime, full: Manifest | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    route = way(Held(OLD, NEW), target, reaches, monkeypatch, tmp_path)
    assert route.full == full
    assert route.reaches == (reaches if full is None else full.consistency_point.time)


@pytest.mark.requirement("R5.3")
def test_while_a_site_is_recovered_to_nobody_else_recovers_to_it(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As long as it goes on, and no longer: also where it failed. Other sites, and drills, are not waited for."""
    came, held = list[str](), list[str]()

    def places(database: str, *, live: bool = True) -> Places:
        return Places(postgres18.superuser, database, None, "", None, (), live=live, run="r")

    def recover(to: Places) -> Any:
        return go(Route(full=OLD), cast("Catalog", None), POLICY, places=to, scratch=tmp_path)

    @contextmanager
    def reading(_: object, backups: list[str], *__: object, **___: object) -> Iterator[None]:
        held.extend(backups)
        yield
        del held[-len(backups) :]

    def restore(*_: object, places: Places, **__: object) -> dict[str, Any]:
        assert OLD.id in held  # or retention might take it away meanwhile
        came.append(str(places.database))
        if places.database == "synapse" and places.live:
            with pytest.raises(SiteBusy, match=f"synapse on {postgres18.superuser.host}:{postgres18.port} now"):
                recover(places)
            recover(places_of_another)
            recover(drill)
            raise Unreachable("The store is away.", mend="Wait.")
        return {}

    places_of_another, drill = places("another"), places("synapse", live=False)
    monkeypatch.setattr(routes, "reading", reading)
    monkeypatch.setattr(routes, "restore_backup", restore)
    for _ in range(2):
        with pytest.raises(Unreachable, match="away"):
            recover(places("synapse"))
    assert came == 2 * ["synapse", "another", "synapse"]
