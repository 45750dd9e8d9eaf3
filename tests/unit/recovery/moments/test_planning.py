"""Plans: which base, which log, where it stops, and what cannot be reached. The backups are made by hand."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import load_policy
from include.recovery.moments.plan import NoTarget
from include.recovery.moments.planning import RecoveryPlan, Target, Unreachable, plan_recovery, recoverable, reopen
from include.recovery.moments.reach import Branch
from include.recovery.moments.restore import Destinations, RestoredMoment, restore_to
from include.repository.catalog import Catalog
from include.repository.contents import REPOSITORY_BUNDLE
from include.repository.layout import BackupId, new_attempt, wal_key
from include.repository.leases import living
from include.repository.ledger import Gap, declare
from include.repository.lsn import Lsn, segment_name
from include.repository.manifest import Artifact, ConfigurationSummary, Manifest, ManifestRefused
from include.repository.timelines import TimelineHistory
from include.repository.verification import Record, VerificationFailed, store_record
from include.repository.wal import WalArchive
from include.sandbox.s3 import S3Server
from include.sources.postgres.waldump import Commit
from tests.manifests import ATTEMPT, MIDNIGHT, POINT, SEGMENT, commit, make, window

POLICY = load_policy()


def at(minute: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=minute)


def place(segment: float) -> Lsn:
    return Lsn(segment * SEGMENT)


@dataclass
class Log:
    """Transactions that ended, as `(timeline, place, minute)`, read as pg_waldump would."""

    ended: Sequence[tuple[int, float, float]] = ()

    def __call__(self, branch: Branch, start: Lsn, end: Lsn) -> Generator[Commit]:
        assert list(branch.between(start, end))  # every segment is there
        for timeline, segment, minute in sorted(self.ended):
            if start <= place(segment) < end and branch.history.timeline_at(place(segment)) == timeline:
                yield Commit(lsn=place(segment), time=at(minute))


def plan(catalog: Catalog, target: str | datetime, log: Log | None = None) -> RecoveryPlan:
    text = target if isinstance(target, str) else target.isoformat()
    return plan_recovery(catalog, Target.parse(text), POLICY, scratch=Path("/nowhere"), read=log or Log())


def chain(catalog: Catalog, *, without: Sequence[int] = ()) -> list[Manifest]:
    """A snapshot in minute 10 and increments every ten minutes to minute 50; each window has two segments."""
    made = [window("snapshot", 10, (2, 4))]
    made += [window("incremental", 10 * n, (2 * n, 2 * n + 2), since=10 * n - 10) for n in range(2, 6)]
    return [commit(catalog, one) for number, one in enumerate(made) if number not in without]


def ship(catalog: Catalog, *segments: int, timeline: int = 1) -> None:
    for number in segments:
        name = segment_name(timeline, place(number), SEGMENT)
        catalog.bucket.create(wal_key("1", name, ATTEMPT), b"sealed")


def ship_history(catalog: Catalog, directory: Path, timeline: int, text: str) -> None:
    file = directory / f"{timeline:08X}.history"
    file.write_text(text)
    archive = WalArchive(catalog.bucket, catalog.keyring, "1", policy=POLICY.pipeline)
    archive.session().ship(file, file.name)


def fail(catalog: Catalog, manifest: Manifest) -> None:
    record = Record(
        backup=manifest.id,
        attempt=manifest.attempt,
        proof="integrity",
        passed=False,
        when=manifest.finished,
        bucket=catalog.bucket.name,
        by="a test",
        milliseconds=1,
        facts={},
        what="A bit is flipped.",
        mend="Use another.",
    )
    store_record(catalog.bucket, catalog.keyring, record)


def forge(catalog: Catalog, manifest: Manifest) -> None:
    catalog.bucket.create(manifest.home, manifest.sealed(catalog.keyring).replace(b'"mind the gap"', b'"mind the cat"'))


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_are_read() -> None:
    assert Target.parse(" latest ") == Target("latest")
    assert Target.parse("2026-11-22T10:37:12+02:00").moment == datetime(2026, 11, 22, 8, 37, 12, tzinfo=UTC)
    assert Target.parse("2026-11-22T10:37:12.5Z").moment == datetime(2026, 11, 22, 10, 37, 12, 500000, tzinfo=UTC)
    backup = BackupId.parse("full-manual-20261122T103712.123456Z")
    assert Target.parse(str(backup)).backup == backup
    for point in (f"{backup}.{ATTEMPT}", f"{backup}.{ATTEMPT}.3"):
        assert Target.parse(point) == Target(point, backup=backup, restore_point=point)


@pytest.mark.parametrize("text", ["", "yesterday", "full-2026", f"full.{ATTEMPT}", "2026-11-22T25:00Z", "10:37+00:00"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(NoTarget, match="Name latest, a moment with its offset"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["2026-11-22T10:37:12", "2026-11-22", "20261122T103712"])
def test_a_moment_without_an_offset_is_refused_and_told_how(text: str) -> None:
    with pytest.raises(NoTarget, match=r"which time zone.*2026-11-22T\d\d:\d\d:\d\d\+00:00 if it is UTC"):
        Target.parse(text)


# --- one history -----------------------------------------------------------------------------------------------------


def test_a_snapshot_alone_reaches_its_own_point_and_the_moments_before_it(catalog: Catalog) -> None:
    (snapshot,) = chain(catalog, without=range(1, 5))
    log = Log([(1, 2.5, 8.8), (1, 3.2, 9.4), (1, 3.4, 9.8)])
    latest = plan(catalog, "latest", log)
    assert (latest.stop.name, latest.stop.lsn) == (f"{snapshot.id}.{ATTEMPT}", place(4) - POINT)
    assert (latest.reaches, latest.at, latest.end_lsn) == (at(10), snapshot, place(4))
    assert [file.name[-2:] for file in latest.wal] == ["02", "03"]
    between = plan(catalog, at(9.5), log)
    assert (between.stop.name, between.stop.lsn, between.stop.inclusive) == (None, place(3.4), False)
    assert (between.reaches, between.base) == (at(9.4), snapshot)
    with pytest.raises(Unreachable, match="before the first base, which was complete at 2026-11-22T00:09") as refused:
        plan(catalog, at(8.9), log)
    assert (refused.value.before, refused.value.after) == (None, at(9))
    assert plan(catalog, refused.value.after.isoformat(), log).reaches == at(9)


def test_recovery_stops_before_the_first_transaction_that_ended_later(catalog: Catalog) -> None:
    snapshot, *increments = chain(catalog)
    log = Log([(1, 6.1, 21), (1, 6.5, 24), (1, 7.1, 25.5), (1, 8.2, 31)])
    for moment, expected in ((at(24), 7.1), (at(25.4), 7.1), (at(23.9), 6.5)):
        stop = plan(catalog, moment, log).stop
        assert (stop.lsn, stop.inclusive) == (place(expected), False)
    planned = plan(catalog, at(24), log)
    assert (planned.reaches, planned.base, planned.at) == (at(24), snapshot, None)
    # The record may go on into the next segment.
    assert [int(file.name, 16) & 0xFF for file in planned.wal] == [2, 3, 4, 5, 6, 7, 8]
    # Nothing ended between the moment and the backup after it: its restore point is the same place, and has a name.
    idle = plan(catalog, at(27), log)
    assert (idle.stop.name, idle.stop.lsn) == (f"{increments[1].id}.{ATTEMPT}", place(8) - POINT)
    assert (idle.reaches, idle.end_lsn, idle.at) == (at(25.5), place(8), None)
    exactly = plan(catalog, at(30), log)
    assert (exactly.at, exactly.reaches) == (increments[1], at(30))


def test_what_was_shipped_since_is_recovered_as_far_as_it_goes_on(catalog: Catalog) -> None:
    *_, last = chain(catalog)
    log = Log([(1, 12.5, 51), (1, 13.5, 52), (1, 15.5, 54)])
    assert plan(catalog, "latest", log).at == last
    ship(catalog, 12, 13, 15)  # 14 is not there
    latest = plan(catalog, "latest", log)
    assert (latest.stop.name, latest.stop.lsn, latest.stop.inclusive) == (None, place(13.5), True)
    assert (latest.reaches, latest.end_lsn) == (at(52), place(14))
    assert [file.attempt for file in latest.wal[-2:]] == [ATTEMPT] * 2
    stop = plan(catalog, at(51.5), log).stop
    assert (stop.lsn, stop.inclusive) == (place(13.5), False)
    exactly = plan(catalog, at(52), log)
    assert (exactly.stop, exactly.reaches) == (latest.stop, at(52))
    with pytest.raises(Unreachable, match=r"nothing later than 2026-11-22T00:52:00\+00:00 is in") as refused:
        plan(catalog, at(53), log)
    assert (refused.value.before, refused.value.after) == (at(52), None)
    assert "`latest` is the newest of all" in refused.value.mend
    # An idle server's segments hold no transaction.
    assert plan(catalog, "latest").at == last


def test_a_backup_and_a_restore_point_are_recovered_by_name(catalog: Catalog) -> None:
    _, first, *_ = chain(catalog)
    for target in (first.id, f"{first.id}.{ATTEMPT}"):
        planned = plan(catalog, target)
        assert (planned.stop.name, planned.at, planned.reaches) == (f"{first.id}.{ATTEMPT}", first, at(20))
    with pytest.raises(NoTarget, match=f"is no restore point of {first.id}"):
        plan(catalog, f"{first.id}.{new_attempt()}")
    with pytest.raises(NoTarget, match="is no restore point of"):
        plan(catalog, f"{first.id}.{ATTEMPT}.2")


def test_a_full_backup_marks_a_place_in_the_log_too(catalog: Catalog) -> None:
    chain(catalog)
    full = make(point=at(24))
    point = full.consistency_point.model_copy(update={"lsn": str(place(6.5)), "restore_point": "in the window"})
    full = commit(catalog, full.model_copy(update={"consistency_point": point}))
    planned = plan(catalog, full.id)
    assert (planned.stop.name, planned.at, planned.end_lsn) == ("in the window", full, place(7))
    assert plan(catalog, at(23)).stop.name == "in the window"


def test_a_full_backup_outside_of_the_log_is_pointed_at(catalog: Catalog) -> None:
    chain(catalog)
    full = commit(catalog, make(1))
    with pytest.raises(Unreachable, match=f"`restore {full.id}` brings that backup itself back"):
        plan(catalog, full.id)


def test_the_newest_base_before_the_moment_is_taken_and_none_after_it(catalog: Catalog) -> None:
    old, *_ = chain(catalog)
    new = commit(catalog, window("snapshot", 35, (7, 9)))
    log = Log([(1, 7.0005, 33.5)])
    assert plan(catalog, at(45), log).base == new
    assert plan(catalog, "latest", log).base == new
    assert plan(catalog, at(33.9), log).base == old
    fail(catalog, new)
    planned = plan(catalog, at(45), log)
    assert planned.base == old
    assert any(f"Passed over: {new.id}" in note for note in planned.notes)
    with pytest.raises(VerificationFailed):
        plan(catalog, new.id, log)


def test_a_base_that_became_consistent_behind_the_place_is_not_taken(catalog: Catalog) -> None:
    old, *_ = chain(catalog)
    commit(catalog, window("snapshot", 35, (7, 9)))
    # The clock was set back: by it this one ended after the base, by the log while it was being made.
    planned = plan(catalog, at(34.5), Log([(1, 7 + 0x800 / SEGMENT, 35.5)]))
    assert (planned.base, planned.stop.lsn) == (old, place(7) + 0x800)


def test_no_base_at_all(catalog: Catalog) -> None:
    with pytest.raises(Unreachable, match=r"holds no base to recover from\. Run the snapshot_backup DAG"):
        plan(catalog, "latest")
    chain(catalog, without=[0])
    with pytest.raises(Unreachable, match="holds no base to recover from"):
        plan(catalog, at(25))


# --- holes -----------------------------------------------------------------------------------------------------------


def test_a_window_that_is_missing_is_a_hole_with_two_borders(catalog: Catalog) -> None:
    snapshot, first, third, fourth = chain(catalog, without=[2])
    ship(catalog, 6, 7)  # still there, and no manifest vouches for them
    log = Log([(1, 5.9999, 20.5), (1, 6.1, 21)])  # one more ended before the switch of the segment
    with pytest.raises(Unreachable) as refused:
        plan(catalog, at(33), log)
    assert f"from 0/600000 to 0/800000 is missing, behind {first.id} and before {third.id}" in refused.value.what
    assert (refused.value.before, refused.value.after) == (at(20.5), None)
    assert plan(catalog, at(20.4), log).stop.lsn == place(5.9999)
    new = commit(catalog, window("snapshot", 45, (10, 11)))
    with pytest.raises(Unreachable) as refused:
        plan(catalog, at(33), log)
    assert (refused.value.before, refused.value.after) == (at(20.5), at(44))
    assert plan(catalog, at(45), log).base == new
    assert [(span.since, span.until) for span in recoverable(catalog, POLICY)] == [(at(9), at(20)), (at(44), at(50))]
    assert "is missing" in recoverable(catalog, POLICY)[0].then
    assert plan(catalog, snapshot.id, log).at == snapshot
    with pytest.raises(Unreachable, match="is missing"):
        plan(catalog, third.id, log)
    assert plan(catalog, fourth.id, log).base == new


def test_the_latest_is_never_quietly_older_than_the_newest_window(catalog: Catalog) -> None:
    chain(catalog, without=[2])
    with pytest.raises(Unreachable, match="has no base before it that is sound") as refused:
        plan(catalog, "latest")
    assert refused.value.before == at(20)


@pytest.mark.parametrize("number", [2, 4])
def test_a_refused_window_that_is_needed_stops_the_plan_by_name(catalog: Catalog, number: int) -> None:
    made = chain(catalog, without=[number])
    lost = window("incremental", 10 * number + 10, (2 * number + 2, 2 * number + 4), since=10 * number)
    forge(catalog, lost)
    with pytest.raises(Unreachable, match=rf"{lost.id} \(refused: .*is refused") as refused:
        plan(catalog, at(10 * number + 5))
    assert refused.value.before == at(10 * number)
    assert plan(catalog, made[1].id).at == made[1]  # it hides nothing else
    if number == 4:
        with pytest.raises(ManifestRefused, match="The latest moment cannot be told") as untold:
            plan(catalog, "latest")
        assert at(40).isoformat() in untold.value.mend


def test_a_window_whose_verification_failed_is_a_hole(catalog: Catalog) -> None:
    made = chain(catalog)
    fail(catalog, made[2])
    with pytest.raises(Unreachable, match=rf"{made[2].id} \(its verification failed: .*A bit is flipped"):
        plan(catalog, at(25))


def test_a_declared_gap_is_told(catalog: Catalog) -> None:
    chain(catalog, without=[2])
    gap = Gap(
        system_identifier="1",
        timeline=1,
        start_lsn=place(6),
        end_lsn=place(8),
        after=at(20),
        before=at(31),
        because="The slot was dropped.",
        declared=at(40),
    )
    declare(catalog.bucket, catalog.keyring, gap)
    with pytest.raises(Unreachable, match=r"is gone, which was declared on .*: The slot was dropped, and there"):
        plan(catalog, at(25))


def test_a_forged_gap_stops_no_recovery(catalog: Catalog) -> None:
    chain(catalog)
    catalog.bucket.create("ledger/1/0-1.json", b"{}")
    assert plan(catalog, at(25)).stop.name


# --- several histories -----------------------------------------------------------------------------------------------

SECOND = TimelineHistory(2, ((1, place(8.5)),))


def recovered_in_place(catalog: Catalog, directory: Path) -> Manifest:
    """To minute 32 of the chain, which had gone on to minute 50; then on timeline 2, backed up in minute 70."""
    chain(catalog)
    ship_history(catalog, directory, 2, f"1\t{place(8.5)}\tafter a restore point\n")
    return commit(catalog, window("incremental", 70, (8, 14), since=30, history=SECOND))


def test_a_failover_is_followed(catalog: Catalog, tmp_path: Path) -> None:
    new = recovered_in_place(catalog, tmp_path)
    log = Log([(1, 8.2, 31), (1, 9.5, 41), (2, 9.1, 61), (2, 9.7, 62)])
    latest = plan(catalog, "latest", log)
    assert (latest.at, latest.history) == (new, SECOND)
    assert [file.name for file in latest.wal] == [
        "00000002.history",
        *(segment_name(1, place(n), SEGMENT) for n in range(2, 8)),
        *(segment_name(2, place(n), SEGMENT) for n in range(8, 14)),
    ]
    stop = plan(catalog, at(61.5), log).stop
    assert (stop.lsn, stop.inclusive) == (place(9.7), False)


def test_a_moment_on_two_histories_is_the_newer_one_s_and_that_is_told(catalog: Catalog, tmp_path: Path) -> None:
    recovered_in_place(catalog, tmp_path)
    log = Log([(1, 8.2, 31), (1, 9.5, 41), (2, 9.1, 61)])
    both = plan(catalog, at(45), log)
    assert (both.history, both.stop.lsn, both.reaches) == (SECOND, place(9.1), at(31))
    (note,) = [note for note in both.notes if "also on timeline 1" in note]
    assert "0/880000" in note
    assert "incremental-20261122T005000Z" in note
    old = plan(catalog, "incremental-20261122T005000Z", log)
    assert (old.history.timeline, old.reaches) == (1, at(50))
    before = plan(catalog, at(25), log)  # they parted, it is one moment
    assert not [note for note in before.notes if "also on" in note]
    assert [(span.timeline, span.since, span.until) for span in recoverable(catalog, POLICY)] == [(2, at(9), at(70))]


def test_a_newer_timeline_that_only_shipped_is_the_newest(catalog: Catalog, tmp_path: Path) -> None:
    chain(catalog)
    ship_history(catalog, tmp_path, 2, f"1\t{place(11.5)}\tno recovery target specified\n")
    assert plan(catalog, "latest").history.timeline == 1  # nothing of it is there yet
    ship(catalog, 11, 12, timeline=2)
    log = Log([(2, 12.5, 55)])
    latest = plan(catalog, "latest", log)
    assert (latest.history.timeline, latest.reaches) == (2, at(55))
    assert [file.name[7] for file in latest.wal[1:]] == ["1"] * 9 + ["2"] * 2


def of_cluster(system_identifier: str, manifest: Manifest) -> Manifest:
    database = manifest.database.model_copy(update={"system_identifier": system_identifier})
    return manifest.model_copy(update={"database": database})


def test_while_another_cluster_was_backed_up_a_moment_is_not_that_of_one_that_came_back(catalog: Catalog) -> None:
    """Failed over in minute 51, and back in minute 85 to the same server, whose log goes on as if nothing had been."""
    chain(catalog)
    for made in (window("snapshot", 60, (2, 4)), window("incremental", 80, (4, 6), since=60)):
        commit(catalog, of_cluster("2", made))
    commit(catalog, window("incremental", 90, (12, 14), since=50))
    commit(catalog, window("incremental", 100, (14, 16), since=90))
    log = Log([(1, 12.1, 51), (1, 13.1, 86), (1, 14.5, 95)])

    def system_of(minute: float) -> str:
        return plan(catalog, at(minute), log).system_identifier

    assert [system_of(minute) for minute in (45, 55, 65, 79, 97)] == ["1", "1", "2", "2", "1"]
    assert plan(catalog, at(55), log).reaches == at(51)
    with pytest.raises(Unreachable, match=r"nothing of cluster 2 counts after .* and cluster 1 can be") as caught:
        plan(catalog, at(85), log)
    assert (caught.value.before, caught.value.after) == (at(80), at(90))
    spans = [(span.system_identifier, span.since, span.until) for span in recoverable(catalog, POLICY)]
    assert spans == [("1", at(9), at(58)), ("2", at(59), at(80)), ("1", at(90), at(100))]
    assert plan(catalog, "latest", log).reaches == at(100)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_is_told_and_made_again_without_reading_the_log(catalog: Catalog) -> None:
    chain(catalog)
    log = Log([(1, 6.1, 21), (1, 6.5, 24)])
    for target in ("latest", at(22).isoformat(), f"incremental-20261122T003000Z.{ATTEMPT}"):
        planned = plan(catalog, target, log)
        document = json.loads(json.dumps(planned.to_json()))
        assert reopen(document, catalog, POLICY) == planned
        assert str(planned.reaches.isoformat()) in str(planned)
        assert len(json.dumps(document)) < 2000
    catalog.bucket.delete_version(  # a window that the plan needs is gone meanwhile
        "manifests/incremental/incremental-20261122T002000Z.json",
        next(catalog.bucket.versions("manifests/incremental/incremental-20261122T002000Z")).version_id,
    )
    with pytest.raises(Unreachable, match=r"is not in .* any more"):
        reopen(document, catalog, POLICY)


@pytest.fixture(scope="module")
def long_chain(s3_primary: S3Server, keyring: Keyring) -> Catalog:
    """The chain, with a second snapshot, and what was shipped since."""
    name = s3_primary.create_bucket(f"bucket-{new_attempt()}")
    store = Bucket(s3_primary.session(), name, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    catalog = Catalog(store, keyring)
    chain(catalog)
    commit(catalog, window("snapshot", 35, (7, 9)))
    ship(catalog, 12, 13)
    return catalog


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_exactly_what_had_ended_by_the_moment_is_kept(long_chain: Catalog, data: st.DataObject) -> None:
    """Transactions anywhere in the log, at times in its order that fit the consistency points around them."""
    backups = [(4, 10.0), (6, 20.0), (8, 30.0), (9, 35.0), (10, 40.0), (12, 50.0)]
    points = [(2 + 0x800 / SEGMENT, 9.0), *((end - POINT / SEGMENT, time) for end, time in backups), (14.0, 60.0)]
    ended: list[tuple[int, float, float]] = []
    for (start, since), (end, until) in pairwise(points):
        count = data.draw(st.integers(0, 4))
        places = data.draw(st.lists(st.integers(10, 990), min_size=count, max_size=count, unique=True))
        shares = [each / 1000 for each in sorted(places)]  # two never end at the same byte
        times = sorted(data.draw(st.lists(st.floats(0.01, 0.99), min_size=count, max_size=count)))
        ended += [
            (1, start + share * (end - start), since + time * (until - since))
            for share, time in zip(shares, times, strict=True)
        ]
    log = Log(ended)
    newest = max([50.0, *(minute for *_, minute in ended)])
    minute = data.draw(st.one_of(st.floats(9, newest), st.sampled_from([9.0, newest, *(m for *_, m in ended)])))
    planned = plan(long_chain, at(minute), log)
    behind = planned.stop.lsn + (0 if planned.stop.name or not planned.stop.inclusive else 1)
    kept = [at(time) for _, segment, time in ended if place(segment) < behind]
    assert kept == [at(time) for *_, time in ended if at(time) <= at(minute)]
    assert planned.base.base.stopped <= at(minute)
    assert planned.base.base.stop_lsn < planned.stop.lsn <= planned.end_lsn


def test_a_plan_names_every_backup_that_it_reads_and_they_are_leased_meanwhile(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, *increments = lived(catalog)
    planned = plan(catalog, at(35))
    # The last one tells what is younger than the moment.
    assert planned.backups == tuple(sorted(each.id for each in (snapshot, *increments)))
    seen: list[str | None] = []

    def looks(_: object) -> RestoredMoment:
        readings = living(catalog.bucket, POLICY.storage.retention.lease, catalog.bucket.clock())
        seen.extend(readings.of(each) for each in planned.backups)
        return RestoredMoment(planned)

    monkeypatch.setattr("include.recovery.moments.restore._Restore.run", looks)
    with Progress("recovering") as progress:
        restore_to(planned, catalog, POLICY, Destinations(), scratch=tmp_path, progress=progress)
    assert len(seen) == 5
    assert all(words and "recovery to" in words for words in seen)


# --- objects and configuration ---------------------------------------------------------------------------------------


def stored(name: str) -> Artifact:
    """An artifact of a configuration, of no bytes."""
    return Artifact(
        name=name,
        component="system_settings",
        retention_class="operational",
        attempt=ATTEMPT,
        segments=(),
        milliseconds=1,
    )


def lived(catalog: Catalog, *, without: Sequence[int] = (), apart: timedelta = timedelta()) -> list[Manifest]:
    """The chain with its objects: each increment has what changed since the backup before; refs moved in minute 30.

    `apart` is how far the store's clock is before the server's.
    """
    made = [window("snapshot", 10, (2, 4))]
    made += [window("incremental", 10 * n, (2 * n, 2 * n + 2), since=10 * n - 10) for n in range(2, 6)]
    committed = []
    for number, one in enumerate(made):
        minute = 10 * number + 10
        moved = minute in {10, 30}
        since = None if number == 0 else at(minute - 10) + apart
        point = one.consistency_point.model_copy(update={"objects_as_of": at(minute) + apart})
        changed = one.model_copy(
            update={
                "consistency_point": point,
                "objects": one.objects.model_copy(update={"since": since}),
                "artifacts": (*([stored(REPOSITORY_BUNDLE)] if moved else []), stored("config/environment.tar")),
                "configuration": ConfigurationSummary(branch="main", files=1, refs_sha256="a" if minute < 30 else "b"),
            }
        )
        if number not in without:
            committed.append(commit(catalog, changed))
    return committed


def test_objects_come_from_the_listing_before_and_the_changes_since(catalog: Catalog) -> None:
    snapshot, *increments = lived(catalog)
    planned = plan(catalog, at(35))
    assert planned.objects is not None
    assert (planned.objects.base, planned.objects.as_of) == (snapshot, at(35))
    assert [one.id for one in planned.objects.increments] == [one.id for one in increments[:3]]
    assert [one.id for one in planned.objects.later] == [increments[3].id]
    full = make(point=at(34))
    full = commit(catalog, full.model_copy(update={"artifacts": (), "configuration": increments[2].configuration}))
    newer = plan(catalog, at(35)).objects
    assert newer is not None
    assert (newer.base.id, [one.id for one in newer.increments]) == (full.id, [increments[2].id])
    point = plan(catalog, increments[0].id)
    assert point.objects is not None
    assert (point.objects.as_of, len(point.objects.increments), point.skew.objects) == (at(20), 1, timedelta(0))


def test_objects_beyond_the_last_increment_are_older_and_that_is_told(catalog: Catalog) -> None:
    lived(catalog)
    ship(catalog, 12, 13)
    planned = plan(catalog, at(58), Log([(1, 12.5, 57), (1, 13.5, 59)]))
    assert planned.objects is not None
    assert (planned.objects.as_of, planned.objects.later) == (at(50), ())
    assert planned.skew.objects == timedelta(minutes=-8)
    assert any("No increment reaches the moment" in note for note in planned.notes)
    assert "objects -480 s" in str(planned)


def test_objects_of_a_moment_before_any_listing_are_younger_and_that_is_told(catalog: Catalog) -> None:
    snapshot, *_ = lived(catalog)
    planned = plan(catalog, at(9.5), Log([(1, 3.5, 9.8)]))
    assert planned.objects is not None
    assert (planned.objects.base, planned.objects.as_of) == (snapshot, at(10))
    assert any("No listing of objects is as old as the moment" in note for note in planned.notes)


def test_a_store_whose_clock_is_apart_is_asked_by_its_own(catalog: Catalog) -> None:
    lived(catalog, apart=timedelta(seconds=-90))
    planned = plan(catalog, at(35))
    assert planned.objects is not None
    assert abs(planned.objects.as_of - (at(35) - timedelta(seconds=90))) <= timedelta(seconds=1)
    assert (planned.skew.objects, planned.notes) == (timedelta(0), ())


def test_the_configuration_is_the_newest_bundle_and_the_newest_files(catalog: Catalog) -> None:
    snapshot, second, third, fourth, _ = lived(catalog)
    for minute, repository, files in ((25, snapshot, second), (30, third, third), (45, third, fourth)):
        found = plan(catalog, at(minute)).configuration
        assert found is not None
        assert (found.repository.id, found.files.id) == (repository.id, files.id)
        assert found.as_of == files.consistency_point.time


def test_a_bundle_that_is_lost_makes_the_configuration_older(catalog: Catalog) -> None:
    snapshot, *_ = lived(catalog, without=[2])
    commit(catalog, window("snapshot", 35, (7, 8), artifacts=(), configuration=snapshot.configuration))
    planned = plan(catalog, at(45))
    assert planned.configuration is not None
    assert (planned.configuration.repository, planned.configuration.as_of) == (snapshot, at(10))
    assert planned.skew.configuration == timedelta(minutes=-35)
