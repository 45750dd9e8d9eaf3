"""What retention leaves is what the real planner needs: years of the schedule on a fake clock (R1, R8.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.pipeline.keys import Keyring
from include.policy import Period, Policy, load_policy
from include.recovery.moments.planning import RecoveryPlan, Target, plan_recovery
from include.recovery.moments.reach import Branch, read_reach
from include.repository.committed import Committed
from include.repository.layout import WAL
from include.repository.lsn import Lsn
from include.repository.needs import Interval, without
from include.repository.retention import Decisions, View, WalCopy, decide
from include.repository.timelines import TimelineHistory
from include.sources.postgres.waldump import Commit
from tests.rolling import SYSTEM, Cluster, Memory, day, verification

POLICY = load_policy()
CLASSES = tuple(POLICY.compliance.retention)
HOUR = timedelta(hours=1)


@dataclass(repr=False)
class World:
    """A cluster, the bucket of its backups, and what is done to them hour by hour."""

    memory: Memory
    policy: Policy = POLICY
    cluster: Cluster = field(default_factory=Cluster)
    histories: dict[int, TimelineHistory] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    all_made: list[Committed] = field(default_factory=list)
    first_base: datetime | None = None

    def hour(
        self, now: datetime, *, missed: frozenset[str] = frozenset(), failed: frozenset[str] = frozenset()
    ) -> None:
        """What the schedule makes at that hour, but for what is missed; what failed does so in its verification."""
        if self.cluster.window_end is not None and "incremental" not in missed:
            self._commit("incremental", now + timedelta(seconds=20), failed)
        if now.hour == 0:
            if "full" not in missed:
                self._commit("full", now + timedelta(minutes=1), failed)
            if now.isoweekday() == 7 and "snapshot" not in missed:
                self._commit("snapshot", now + timedelta(minutes=20), failed)
        if now.day == 1 and now.hour == 2:
            for retention_class in CLASSES:
                manifest = self.cluster.archive(retention_class, now)
                self.memory.commit(manifest, verification(manifest))

    def _commit(self, type_: str, at: datetime, failed: frozenset[str]) -> None:
        make = {"incremental": self.cluster.increment, "full": self.cluster.full, "snapshot": self.cluster.snapshot}
        manifest = make[type_](at)
        self.memory.commit(manifest, verification(manifest, passed=type_ not in failed))
        made = self.memory.short[manifest.id]
        self.all_made.append(made)
        if self.first_base is None and made.base:
            self.first_base = made.base.stopped

    def fail_over(self, now: datetime) -> None:
        """The cluster goes on on a new timeline."""
        history = self.cluster.fail_over()
        self.histories[history.timeline] = history
        self.memory.tell_history(history, now)

    def retain(self, now: datetime) -> Decisions:
        """One run of retention, object by object."""
        memory = self.memory
        view = View(
            backups=list(memory.short.values()),
            gaps=memory.gaps,
            holds=self.holds,
            histories={SYSTEM: self.histories},
            wal=[WalCopy(key, 7, at) for key, at in memory.objects.items() if key.startswith(WAL)],
        )
        decisions = decide(view, self.policy, now)
        memory.remove([key for key, at in memory.objects.items() if not decisions.of(key, at).stays])
        return decisions

    def spans(self) -> list[Interval]:
        """What can be restored, as the planner says."""
        reach = read_reach(self.memory.catalog(), self.policy.pipeline)
        return [Interval(span.since, span.until) for span in reach.spans]

    def plan(self, moment: datetime, scratch: Path) -> RecoveryPlan:
        """The plan for a moment, of a database that was idle."""
        target = Target.parse(moment.isoformat())
        return plan_recovery(self.memory.catalog(), target, self.policy, scratch=scratch, read=_nothing_ended)


def _nothing_ended(_branch: Branch, _start: Lsn, _end: Lsn) -> Generator[Commit]:
    yield from ()


def with_retention(
    *, full: str = "30 days", incremental: str = "7 days", snapshot: str = "12 weeks", minimum: tuple[int, int, int]
) -> Policy:
    """The policy with other periods and minimums."""
    backups = POLICY.backups
    kept = POLICY.storage.retention.minimum_kept.model_copy(
        update=dict(zip(("full", "incremental", "snapshot"), minimum, strict=True))
    )
    retention = POLICY.storage.retention.model_copy(update={"minimum_kept": kept})
    periods = {"full": full, "incremental": incremental, "snapshot": snapshot}
    changed = {
        name: getattr(backups, name).model_copy(update={"retention": Period.parse(period)})
        for name, period in periods.items()
    }
    return POLICY.model_copy(
        update={
            "backups": backups.model_copy(update=changed),
            "storage": POLICY.storage.model_copy(update={"retention": retention}),
        }
    )


@pytest.fixture
def world(keyring: Keyring) -> World:
    return World(Memory(keyring))


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json")


def live(world: World, begin: datetime, hours: int, scratch: Path, *, every: int, planned_every: int) -> None:
    """So many hours of the clean schedule; the promises are looked at every so many hours."""
    for number in range(hours):
        now = begin + number * HOUR
        world.hour(now)
        if now.hour == 4:
            world.retain(now + timedelta(minutes=5))
            must_be_exactly_kept(world, now)
            world.all_made = [each for each in world.all_made if each.time > now - timedelta(days=100)]
        if number % every == 0 and world.cluster.window_end is not None:
            must_be_restorable(world, now)
        if number % planned_every == 0 and number > 24 * 14:
            must_be_planned(world, now, scratch)


def must_be_restorable(world: World, now: datetime) -> None:
    """Any moment of the window, from the first base on, to the last increment (R1.2)."""
    window = world.policy.backups.incremental.retention.before(now)
    newest = next(each.time for each in reversed(world.all_made) if each.log)
    assert world.first_base is not None
    span = world.spans()[-1]  # before it each snapshot is a moment of its own
    assert span.since <= max(window, world.first_base)
    assert span.until == newest


def must_be_exactly_kept(world: World, now: datetime) -> None:
    """Nothing beyond its longest reason, and everything within it."""
    there = world.memory.short.values()
    backups, minute = world.policy.backups, timedelta(minutes=5)
    by_type = {type_: {each.time for each in there if each.type == type_} for type_ in ("full", "snapshot")}
    made = {type_: {each.time for each in world.all_made if each.type == type_} for type_ in ("full", "snapshot")}
    assert by_type["full"] == {time for time in made["full"] if time >= backups.full.retention.before(now + minute)}
    assert by_type["snapshot"] == {
        time for time in made["snapshot"] if time >= backups.snapshot.retention.before(now + minute)
    }
    window = backups.incremental.retention.before(now + minute)
    bases = [each.base for each in world.all_made if each.base and each.base.stopped <= window]
    begin = max(bases, key=lambda base: base.stopped).start if bases else Lsn(0)
    increments = [each for each in world.all_made if each.type == "incremental"]
    expected = {each.id for each in increments if each.time >= window or (each.log and each.log.end > begin)}
    assert {each.id for each in there if each.type == "incremental"} == expected
    for retention_class in CLASSES:
        period = world.policy.compliance.retention[retention_class]
        archives = [each for each in there if each.retention_class == retention_class]
        months = {(each.time.year, each.time.month) for each in archives}
        first = max(day(0), period.before(now + minute))
        assert len(archives) == len(months)
        assert months == {(time.year, time.month) for time in _firsts(first, now) if time <= now}
    for key in world.memory.objects:  # nothing is left of what is gone
        if key.startswith(("full/", "incremental/", "snapshot/")):
            assert key.split("/")[4] in world.memory.short
    named = {key for each in there for key in each.shared}
    told = {key for key in world.memory.objects if key.startswith(("packs/", WAL)) and not key.endswith("history")}
    assert told == {key for key in named if not key.endswith("history")}


def _firsts(since: datetime, until: datetime) -> list[datetime]:
    """Half past the second hour of every first of a month, when archives are made, after `since`."""
    found = [
        datetime(year, month, 1, 2, tzinfo=since.tzinfo)
        for year in range(2026, until.year + 1)
        for month in range(1, 13)
    ]
    return [time for time in found if since <= time <= until]


def must_be_planned(world: World, now: datetime, scratch: Path) -> None:
    """By the real planner: the oldest promised moment, one in the middle, and each exactly, objects and all."""
    window = world.policy.backups.incremental.retention.before(now)
    for moment in (window, window + timedelta(days=3, minutes=17), now - timedelta(minutes=90)):
        plan = world.plan(moment, scratch)
        assert plan.objects is not None
        assert plan.configuration is not None
        assert plan.objects.as_of == moment
        assert timedelta() <= moment - plan.configuration.as_of <= 2 * HOUR
        assert not [note for note in plan.notes if "objects" in note]


@pytest.mark.requirement("R1.1", "R1.2", "R1.3", "R8.1")
def test_sixty_days_of_the_schedule(world: World, tmp_path: Path) -> None:
    live(world, day(0), 24 * 60, tmp_path, every=13, planned_every=97)


@pytest.mark.requirement("R1.1", "R1.3", "R8.1")
def test_two_years_of_one_increment_a_day(keyring: Keyring) -> None:
    world = World(Memory(keyring), with_retention(minimum=(3, 7, 2)))  # as many a week as are made
    for number in range(730):
        midnight = day(number)
        world.hour(midnight)
        world.hour(midnight + 2 * HOUR, missed=frozenset(["incremental"]))
        if number % 7 == 5:
            now = midnight + 4 * HOUR
            world.retain(now + timedelta(minutes=5))
            must_be_exactly_kept(world, now)
            must_be_restorable(world, now)
            world.all_made = [each for each in world.all_made if each.time > now - timedelta(days=100)]
    archives = Counter(each.retention_class for each in world.memory.short.values() if each.type == "archive")
    assert archives == {"financial": 24, "personal": 24, "operational": 12}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.requirement("R1.1", "R1.2", "R1.3", "R8.1")
def test_two_years_of_the_schedule_hour_by_hour(world: World, tmp_path: Path) -> None:
    live(world, day(0), 24 * 730, tmp_path, every=1, planned_every=13)
    archives = Counter(each.retention_class for each in world.memory.short.values() if each.type == "archive")
    assert archives == {"financial": 24, "personal": 24, "operational": 12}


# --- lives with faults -----------------------------------------------------------------------------------------------

TYPES = ("full", "incremental", "snapshot")
FORTNIGHT, WEEKS = 15, 36
"""How many days a life is long; of the shorter one periods are short as well."""


@dataclass
class Reference:
    """The same backups, of which nothing was ever deleted."""

    memory: Memory

    def spans_of(self, world: World) -> list[Interval]:
        """What could be restored if nothing had gone."""
        return World(self.memory, world.policy, histories=world.histories).spans()


minimums = st.sampled_from([(1, 1, 1), (3, 24, 2), (2, 5, 3)])
short_policies = st.builds(
    with_retention,
    full=st.sampled_from(["1 day", "3 days"]),
    incremental=st.sampled_from(["1 day", "2 days"]),
    snapshot=st.sampled_from(["1 day", "8 days"]),
    minimum=minimums,
)
policies = st.builds(
    with_retention,
    full=st.sampled_from(["2 days", "10 days", "30 days"]),
    incremental=st.sampled_from(["1 day", "3 days", "7 days"]),
    snapshot=st.sampled_from(["3 days", "2 weeks", "12 weeks"]),
    minimum=minimums,
)


def faults(days: int) -> st.SearchStrategy[list[tuple[int, str, str]]]:
    """What goes wrong, and in which hour."""
    whats = ["missed", "failed", "fail over", "lose log", "hold", "refs", "outage"]
    fault = st.tuples(st.integers(0, days * 24 - 1), st.sampled_from(whats), st.sampled_from(TYPES))
    return st.lists(fault, max_size=14)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=short_policies, faults=faults(FORTNIGHT))
@pytest.mark.requirement("R1.2")
def test_whatever_happens_what_is_promised_stays_restorable(
    keyring: Keyring, tmp_path: Path, policy: Policy, faults: list[tuple[int, str, str]]
) -> None:
    lived(keyring, tmp_path, policy, faults, days=FORTNIGHT)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=policies, faults=faults(WEEKS))
def test_whatever_happens_for_longer(
    keyring: Keyring, tmp_path: Path, policy: Policy, faults: list[tuple[int, str, str]]
) -> None:
    lived(keyring, tmp_path, policy, faults, days=WEEKS)


def lived(keyring: Keyring, scratch: Path, policy: Policy, faults: list[tuple[int, str, str]], *, days: int) -> None:
    """Days with faults; every third day what is left is compared with what would be there if nothing had gone."""
    world, whole = World(Memory(keyring), policy), Memory(keyring)
    by_hour = {number: (what, type_) for number, what, type_ in faults}
    out = 0
    for number in range(days * 24):
        now = day(2) + number * HOUR  # a Saturday
        what, type_ = by_hour.get(number, ("", ""))
        if what == "outage":
            out = number + 60
        missed = frozenset(TYPES) if number < out else frozenset([type_] if what == "missed" else [])
        _befall(world, whole, what, now)
        before = set(world.memory.short)
        world.hour(now, missed=missed, failed=frozenset([type_] if what == "failed" else []))
        for backup in world.memory.short.keys() - before:
            manifest = world.memory.entries[backup].manifest
            assert manifest is not None
            whole.commit(manifest, world.memory.entries[backup].verification)
        if now.hour == 4:
            decisions = world.retain(now)
            if number % (24 * 3) == 4:
                must_keep_the_promises(world, whole, now, decisions, scratch)


def _befall(world: World, whole: Memory, what: str, now: datetime) -> None:
    if what == "fail over":
        world.fail_over(now)
        whole.tell_history(world.cluster.history, now)
    elif what == "lose log" and world.cluster.window_end is not None:
        gap = world.cluster.lose_log(now)
        world.memory.declare(gap)
        whole.declare(gap)
    elif what == "refs":
        world.cluster.refs = now.isoformat()
    elif what == "hold" and world.all_made and (there := sorted(world.memory.short)):
        world.holds[there[len(there) // 2]] = "held by counsel: a case"


def must_keep_the_promises(world: World, whole: Memory, now: datetime, decisions: Decisions, scratch: Path) -> None:
    """Every moment of the window that could be restored if nothing had gone, as near by objects and configuration;
    every held increment; the last good of each type; and nothing without a reason.
    """
    window = world.policy.backups.incremental.retention.before(now)
    reference = World(whole, world.policy, histories=world.histories)
    promised = [Interval(max(each.since, window), each.until) for each in reference.spans() if each.until >= window]
    lost = [each for each in without(promised, world.spans()) if each.until > each.since]
    assert not lost
    moments = [each.since + (each.until - each.since) * share for each in promised for share in (0, 0.37, 1)]
    for moment in moments[:6]:
        ours, theirs = world.plan(moment, scratch), reference.plan(moment, scratch)
        assert (ours.objects and ours.objects.as_of) == (theirs.objects and theirs.objects.as_of)
        assert (ours.stop, ours.history) == (theirs.stop, theirs.history)
        assert ours.configuration is not None
        assert theirs.configuration is not None
        assert theirs.configuration.as_of - ours.configuration.as_of <= HOUR
    there = world.memory.short
    for backup in world.holds:
        assert backup in there
        if there[backup].type == "incremental" and _could_be_restored(reference, backup, scratch):
            assert world.plan(there[backup].time, scratch).at is not None
    for type_ in TYPES:
        good = [each for each in world.all_made if each.type == type_ and each.verified]
        assert not good or max(good, key=lambda each: each.time).id in there
        sound = sorted(
            (each for each in world.all_made if each.type == type_ and not each.failed), key=lambda e: e.time
        )
        least = getattr(world.policy.storage.retention.minimum_kept, type_)
        assert {each.id for each in sound[-least:]} <= there.keys()
    for backup, each in there.items():
        if backup in decisions.backups and not world.holds:
            must_have_a_reason(world, each, now)


def _could_be_restored(reference: World, backup: str, scratch: Path) -> bool:
    entry = reference.memory.entries[backup]
    assert entry.manifest is not None
    moment = entry.manifest.consistency_point.time
    return any(each.since <= moment <= each.until for each in reference.spans()) and bool(scratch)


def must_have_a_reason(world: World, backup: Committed, now: datetime) -> None:
    """Its own period, a minimum, or that it is not older than the oldest thing that the window or the minimum needs."""
    if backup.type == "archive":
        return
    backups, minimum = world.policy.backups, world.policy.storage.retention.minimum_kept
    if backup.time >= getattr(backups, backup.type).retention.before(now):
        return
    window = backups.incremental.retention.before(now)
    sound = [each for each in world.all_made if not each.failed]
    increments = sorted(each.time for each in sound if each.type == "incremental")
    least = min([window, *increments[-minimum.incremental :], *_last_good(world)])
    # A base has all objects and the configuration, too: what is older than that has been replaced by it.
    bases = sorted(each.time for each in sound if each.base and each.verified and each.time < least - HOUR)
    same_type = sorted(each.time for each in sound if each.type == backup.type)
    count = getattr(minimum, backup.type)
    assert not bases or backup.time >= min([bases[-1] - 2 * HOUR, *same_type[-count:]])


def _last_good(world: World) -> list[datetime]:
    good = [[each.time for each in world.all_made if each.type == type_ and each.verified] for type_ in TYPES]
    return [max(times) for times in good if times]
