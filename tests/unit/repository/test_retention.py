"""What stays and why, rule by rule, on made-up backups; nothing is asked here but the pure function (R1, R8.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from include.policy import Period, Policy, load_policy
from include.repository.committed import Committed
from include.repository.layout import BackupId, wal_key
from include.repository.leases import Readings
from include.repository.lsn import Lsn, segment_name
from include.repository.manifest import Manifest
from include.repository.needs import Interval, without
from include.repository.references import references
from include.repository.retention import Decisions, View, WalCopy, decide
from include.repository.tombstones import Tombstone
from tests.manifests import SEGMENT
from tests.rolling import SYSTEM, Cluster, day, name_of

POLICY = load_policy()
HOUR = timedelta(hours=1)


def lenient(full: int = 1, incremental: int = 1, snapshot: int = 1) -> Policy:
    """The policy with these minimums."""
    kept = POLICY.storage.retention.minimum_kept.model_copy(
        update={"full": full, "incremental": incremental, "snapshot": snapshot}
    )
    retention = POLICY.storage.retention.model_copy(update={"minimum_kept": kept})
    return POLICY.model_copy(update={"storage": POLICY.storage.model_copy(update={"retention": retention})})


SMALL = lenient()


def short(manifest: Manifest, *, verified: bool = True, failed: bool = False) -> Committed:
    return replace(Committed.of(manifest), verified=verified and not failed, failed=failed)


def kinds(decisions: Decisions, backup: Committed | Manifest) -> set[str]:
    return {reason.kind for reason in decisions.backups[backup.id].reasons}


@pytest.mark.requirement("R1.1")
def test_a_full_backup_is_kept_for_its_period_by_the_time_of_its_consistency_point() -> None:
    cluster = Cluster()
    old = short(cluster.full(day(0)))
    # Its id says that it is the newest; what it holds is as old as the first.
    misnamed = replace(short(cluster.full(day(40))), time=day(0) + HOUR)
    new = [short(cluster.full(day(number))) for number in (38, 39)]
    decisions = decide(View([old, misnamed, *new]), SMALL, day(30) - HOUR)
    assert decisions.going == ()
    assert decisions.backups[old.id].reasons[0].until == day(30)
    decisions = decide(View([old, misnamed, *new]), SMALL, day(30) + HOUR / 2)
    assert [each.id for each in decisions.going] == [old.id]
    decisions = decide(View([old, misnamed, *new]), SMALL, day(30) + 2 * HOUR)
    assert {each.id for each in decisions.going} == {old.id, misnamed.id}


@pytest.mark.requirement("R8.1")
def test_archives_are_kept_for_their_classes_periods_and_the_last_verified_one_beyond() -> None:
    cluster = Cluster()
    made = {
        name: [short(cluster.archive(name, datetime(2026, month, 1, 2, tzinfo=day(0).tzinfo))) for month in (2, 3)]
        for name in ("financial", "personal", "operational", "forgotten")
    }
    view = View([each for archives in made.values() for each in archives])

    def left(years: int) -> dict[str, int]:
        decisions = decide(view, SMALL, datetime(2026 + years, 2, 15, tzinfo=day(0).tzinfo))
        return {name: sum(kinds(decisions, one) != set() for one in archives) for name, archives in made.items()}

    assert left(0) == {"financial": 2, "personal": 2, "operational": 2, "forgotten": 2}
    assert left(1) == {"financial": 2, "personal": 2, "operational": 1, "forgotten": 2}
    assert left(5) == {"financial": 2, "personal": 1, "operational": 1, "forgotten": 2}
    assert left(9) == {"financial": 1, "personal": 1, "operational": 1, "forgotten": 2}  # nobody knows its period


def test_a_failed_backup_is_neither_the_last_nor_one_of_the_least() -> None:
    cluster = Cluster()
    good = [short(cluster.full(day(number))) for number in range(4)]
    bad = [short(cluster.full(day(number)), failed=True) for number in (4, 5)]
    unproved = short(cluster.full(day(6)), verified=False)
    decisions = decide(View([*good, *bad, unproved]), lenient(full=2), day(300))
    assert {each.id for each in decisions.staying} == {good[3].id, unproved.id}
    assert kinds(decisions, good[3]) == {"last verified", "minimum"}
    assert kinds(decisions, unproved) == {"minimum"}


def chain(cluster: Cluster) -> list[Manifest]:
    """A Sunday's snapshot, and an increment a day behind it, for three weeks: eight a week."""
    made = []
    for week in range(3):
        made.append(cluster.snapshot(day(3 + 7 * week)))
        made += [cluster.increment(day(3 + 7 * week + number) + HOUR) for number in range(7)]
    return made


@pytest.mark.requirement("R1.2")
def test_the_window_reaches_back_to_the_newest_base_before_it() -> None:
    made = [short(each) for each in chain(Cluster())]
    decisions = decide(View(made), SMALL, day(22))  # so the window begins on day 15, and the second base is of day 10
    assert [each.id for each in reversed(decisions.going)] == [each.id for each in made[1:8]]
    assert kinds(decisions, made[0]) == {"period"}
    assert "recovery" in kinds(decisions, made[8])
    assert kinds(decisions, made[9]) == {"recovery"}
    # When the second base turns out bad, the first one carries the window.
    made[8] = replace(made[8], verified=False, failed=True)
    assert decide(View(made), SMALL, day(22)).going == ()
    # While nobody has proved it, both do.
    made[8] = replace(made[8], failed=False)
    assert decide(View(made), SMALL, day(22)).going == ()


def test_a_window_that_failed_stays_in_its_chain_for_it_may_be_mended() -> None:
    made = [short(each) for each in chain(Cluster())]
    made[10] = replace(made[10], verified=False, failed=True)
    assert "recovery" in kinds(decide(View(made), SMALL, day(22)), made[10])


def test_the_old_timeline_goes_with_its_last_moment_and_the_history_stays() -> None:
    cluster = Cluster()
    made = chain(cluster)[:10]
    history = cluster.fail_over()
    made += [cluster.increment(day(13) + number * timedelta(days=1)) for number in range(12)]
    short_ = [short(each) for each in made]
    name = f"wal/{SYSTEM}/00000002/00000002.history.{name_of('alone')}.zst.enc"
    histories = {SYSTEM: {2: history}}
    view = View(short_, histories=histories, wal=[WalCopy(name, 7, day(13))])
    decisions = decide(view, SMALL, day(24))
    assert {each.id for each in decisions.going} == {each.id for each in short_[1:8]}
    assert "recovery" in kinds(decisions, short_[8])  # the base is of the old timeline
    assert decisions.of(name, day(13)).stays
    # A history that nobody can read may lead over anything: as much stays.
    unread = decide(View(short_), SMALL, day(24))
    assert {each.id for each in unread.going} == {each.id for each in decisions.going}


def test_a_declared_gap_cuts_the_chain_and_goes_with_what_lies_before_it() -> None:
    cluster = Cluster()
    made = chain(cluster)[:10]
    gap = cluster.lose_log(day(13))
    made += [cluster.increment(day(13) + number * timedelta(days=1) + HOUR) for number in range(9)]
    made += [cluster.full(day(22) - HOUR), cluster.snapshot(day(23))]
    made += [cluster.increment(day(23) + number * HOUR) for number in range(1, 5)]
    short_ = [short(each) for each in made]
    decisions = decide(View(short_, gaps=[gap]), SMALL, day(22))
    assert decisions.of(gap.home, day(13)).stays
    assert "recovery" not in kinds(decisions, short_[8])  # nothing leads over the gap, so its windows go
    assert short_[9] in decisions.going
    without_gap = decide(View(short_), SMALL, day(22))
    assert short_[9] in without_gap.staying  # a hole that nobody declared may be filled
    late = decide(View([each for each in short_ if each.time > day(20)], gaps=[gap]), SMALL, day(40))
    assert not late.of(gap.home, day(13)).stays


def test_log_beyond_the_last_window_stays_and_loose_copies_behind_it_go() -> None:
    cluster = Cluster()
    made = [short(each) for each in chain(cluster)]
    last = made[-1]
    assert last.log is not None

    def copy(number: int, words: str) -> WalCopy:
        name = segment_name(1, Lsn(number * SEGMENT), SEGMENT)
        return WalCopy(wal_key(SYSTEM, name, name_of(words)), 7, day(24))

    end = last.log.end // SEGMENT
    beyond, behind, young = copy(end, "a"), copy(end - 1, "b"), copy(end - 1, "c")._replace(modified=day(30) - HOUR)
    decisions = decide(View(made, wal=[beyond, behind, young]), SMALL, day(30))
    assert decisions.of(beyond.key, beyond.modified).reasons[0].words == "it is log beyond the last window"
    assert not decisions.of(behind.key, behind.modified).stays
    assert decisions.of(young.key, young.modified).stays
    key = f"keys/wal-{SYSTEM}/{{}}/kek-1.json"
    assert decisions.of(key.format(name_of("a")), day(10)).stays
    assert not decisions.of(key.format(name_of("b")), day(10)).stays
    assert decisions.of(key.format(name_of("nobody's")), day(29)).stays  # a session that has shipped nothing yet


def test_what_is_shared_goes_with_the_last_that_names_it() -> None:
    cluster = Cluster()
    old, new = short(cluster.full(day(0))), short(cluster.full(day(40)))
    new = replace(new, shared=(*new.shared, *old.shared), envelopes=new.envelopes | old.envelopes)
    decisions = decide(View([old, new]), SMALL, day(41))
    assert decisions.going == (old,)
    pack = old.shared[0]
    (reason,) = decisions.of(pack, day(0)).reasons
    assert reason.words == f"{new.id} names it"
    assert decisions.of(f"keys/{pack.removeprefix('packs/')}/{old.attempt}/kek-1.json", day(0)).stays
    assert not decide(View([old, replace(new, shared=())]), SMALL, day(41)).of(pack, day(0)).stays


def test_a_manifest_that_is_refused_keeps_what_it_may_name() -> None:
    cluster = Cluster()
    made = [cluster.full(day(number)) for number in range(4)]
    short_ = [short(each) for each in made]
    suspect = {BackupId.parse("full-20200101T000000Z").manifest_key: b'..."attempt":"' + made[1].attempt.encode()}
    decisions = decide(View(short_, refused=suspect), SMALL, day(300))
    assert {each.id for each in decisions.staying} == {made[1].id, made[3].id}
    pack = next(one.key for one in references(made[0]) if one.key.startswith("packs/"))
    assert decisions.of(pack, day(0)).stays
    assert not decisions.of(made[0].artifacts[0].segments[0].key, day(0)).stays
    assert decisions.of(next(iter(suspect)), day(0)).stays
    stray = decide(View(short_, refused={"manifests/full/a stray": b""}), SMALL, day(300))
    assert stray.going == ()
    assert stray.of("wal/1/00000001/000000010000000000000001.0123456789abcdef.zst.enc", day(0)).stays


def test_readers_holds_and_tombstones() -> None:
    cluster = Cluster()
    made = [short(cluster.full(day(number))) for number in range(4)]
    readings = Readings({made[1].id: "somebody reads it"})
    gone = Tombstone.of(short(cluster.full(day(9))), bucket="b", deleted=day(300))
    view = View(made, readings=readings, holds={made[0].id: "held"}, tombstones=[gone])
    decisions = decide(view, SMALL, day(300))
    assert [each.id for each in decisions.going] == [made[2].id]
    assert kinds(decisions, made[0]) == {"hold"}
    assert kinds(decisions, made[1]) == {"reading"}
    for key in (f"{gone.own_prefixes[0]}x", gone.shared[0], f"verification/{gone.backup}/x", gone.home):
        assert not decisions.of(key, day(9)).stays
    assert decisions.of("verification/full-20200101T000000Z/x", day(9)).stays  # lost, and nobody said that it goes
    assert decide(View(made, readings=Readings(anything="it may")), SMALL, day(300)).going == ()


@pytest.mark.requirement("R3.2")
def test_a_replica_keeps_what_the_primary_shows_for_it_would_be_brought_again() -> None:
    cluster = Cluster()
    made = [short(cluster.full(day(number))) for number in range(4)]
    view = View(made, mirrored=frozenset({made[0].id}))
    decisions = decide(view, SMALL, day(60))
    assert {each.id for each in decisions.going} == {made[1].id, made[2].id}
    assert kinds(decisions, made[0]) == {"mirrored"}


def test_what_no_rule_speaks_of_stays() -> None:
    decisions = decide(View([]), SMALL, day(300))
    for key in ("audit/2020/01/01/x.json", "reports/2020-01/x", "state/probe-x", "somebody/else", "keys/x", "wal/x"):
        assert decisions.of(key, day(0)).stays


def test_intervals_are_cut() -> None:
    whole = [Interval(day(0), day(10))]
    assert without(whole, [Interval(day(2), day(3)), Interval(day(9), day(11))]) == [
        Interval(day(0), day(2)),
        Interval(day(3), day(9)),
    ]
    assert without(whole, whole) == []


# --- objects and configuration of the window, where full backups are kept for less -----------------------------------


def hasty() -> Policy:
    """A policy that keeps full backups for a day only."""
    full = SMALL.backups.full.model_copy(update={"retention": Period.parse("1 day")})
    return SMALL.model_copy(update={"backups": SMALL.backups.model_copy(update={"full": full})})


def test_where_the_changes_break_off_the_listings_behind_stay() -> None:
    cluster = Cluster()
    made = [short(cluster.full(day(3) - HOUR)), short(cluster.snapshot(day(3)))]
    listings = {}
    for number in range(3, 12):
        listings[number] = short(cluster.full(day(number) + 3 * HOUR))
        made += [short(cluster.increment(day(number) + 2 * HOUR), failed=number == 6), listings[number]]
    decisions = decide(View(made), hasty(), day(12))  # so the window begins on day 5
    kept = {number for number, each in listings.items() if "recovery" in kinds(decisions, each)}
    assert kept == {4, 5, 6, 11}  # before the window, within the break, behind it, and behind the last change
    going = {made[0].id, *(listings[number].id for number in (3, 7, 8, 9))}  # the last increment needs the tenth
    assert {each.id for each in decisions.going} == going


def test_before_the_first_base_nothing_is_promised_and_the_listing_right_before_it_stays() -> None:
    cluster = Cluster()
    early, late = short(cluster.full(day(1) + HOUR)), short(cluster.full(day(3) - HOUR))
    made = [early, late, short(cluster.snapshot(day(3))), short(cluster.increment(day(3) + HOUR))]
    made.append(short(cluster.full(day(7))))
    decisions = decide(View(made), hasty(), day(8) - HOUR)
    assert decisions.going == (early,)
    assert kinds(decisions, late) == {"recovery"}


def test_a_repository_that_only_a_full_backup_has_stays_with_the_files_that_go_with_it() -> None:
    cluster = Cluster()
    made = [short(cluster.snapshot(day(3)))]
    cluster.refs = "moved"
    lost = cluster.increment(day(6))  # it had the new bundle, and failed
    bundle = short(cluster.full(day(6) + HOUR))
    made += [short(lost, failed=True), bundle]
    made += [short(cluster.increment(day(number))) for number in (7, 8, 9, 10)]
    other = short(cluster.full(day(8) + HOUR))
    decisions = decide(View([*made, other, short(cluster.full(day(11)))]), hasty(), day(11) + HOUR)
    assert "recovery" in kinds(decisions, bundle)
    assert kinds(decisions, other) == {"chain"}  # the newest listing before the last increment
