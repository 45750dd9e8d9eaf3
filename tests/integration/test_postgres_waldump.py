"""What WAL segments hold, and that they are whole, as the server's own pg_waldump reads them (R4.2, R5.3)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.repository.lsn import Lsn, segment_lsn
from include.repository.timelines import TimelineHistory
from include.sandbox.postgres import PostgresServer
from include.sandbox.standby import Standby
from include.sources.postgres.replication import identify_system, timeline_history
from include.sources.postgres.tools import PostgresTools, tools_of
from include.sources.postgres.waldump import WalBroken, check_window, commits, restore_points
from tests.replication import SEGMENT, Cluster

SWITCH_RECORD = 24
SETTINGS = {
    "track_commit_timestamp": "on",
    "max_prepared_transactions": "4",
    "autovacuum": "off",
    "timezone": "Asia/Kolkata",
    "log_timezone": "Asia/Kolkata",
    "wal_keep_size": "1GB",
}


@pytest.fixture(scope="module", params=[15, 18])
def cluster(request: pytest.FixtureRequest, sandbox_directory: Path) -> Iterator[Cluster]:
    directory = sandbox_directory / f"waldump-{request.param}"
    with PostgresServer(directory, major=request.param, durable=False, settings=SETTINGS) as server:
        yield Cluster(server)


class Window:
    """A copy of the segments of `[start, end)`."""

    def __init__(self, cluster: Cluster, directory: Path, start: Lsn, end: Lsn, timeline: int = 1) -> None:
        self.tools: PostgresTools = tools_of(cluster.server.major)
        self.directory, self.start, self.end, self.timeline = directory, start, end, timeline
        for path in (cluster.server.data / "pg_wal").iterdir():
            if len(path.name) == 24 and start <= segment_lsn(path.name, SEGMENT) < end:
                shutil.copy(path, directory)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def read(self, what):
        return list(what(self.tools, self.directory, self.start, self.end, self.timeline))

    def check(self) -> Lsn:
        return check_window(self.tools, self.directory, self.start, self.end, self.timeline)


def commit_times(cluster: Cluster, *transactions: int) -> list[datetime]:
    return [cluster.value(f"SELECT pg_xact_commit_timestamp('{number}')").astimezone(UTC) for number in transactions]


@pytest.mark.requirement("R5.3")
def test_every_end_of_a_transaction_is_found_at_the_servers_time(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    start = cluster.switch()
    number = "SELECT pg_current_xact_id()::text::bigint"
    plain = cluster.value(f"INSERT INTO filler VALUES ('') RETURNING ({number})")
    with cluster.server.superuser.connect(application_name="test") as session:
        session.execute("INSERT INTO filler VALUES ('')")
        with suppress(ZeroDivisionError), session.transaction():
            session.execute("INSERT INTO filler VALUES ('')")
            raise ZeroDivisionError
        nested = session.execute(number).fetchone()[0]
        session.commit()
        session.execute("INSERT INTO filler VALUES ('')")
        session.rollback()
    with cluster.server.superuser.connect(application_name="test", autocommit=True) as session:
        for name, ends in (("kept", "COMMIT"), ("dropped", "ROLLBACK")):
            session.execute("BEGIN")
            session.execute(f"CREATE TABLE prepared_{name} AS SELECT ({number}) AS number")
            session.execute(f"PREPARE TRANSACTION '{name}'")
            session.execute(f"{ends} PREPARED '{name}'")
    prepared = cluster.value("SELECT number FROM prepared_kept")
    end = cluster.switch()
    cluster.run("DROP TABLE prepared_kept")

    found = Window(cluster, tmp_path, start, end).read(commits)
    assert [commit.committed for commit in found] == [True, False, True, False, True, False]  # a subtransaction's, too
    times = [commit.time for commit in found if commit.committed]
    assert times == commit_times(cluster, plain, nested, prepared)
    assert [commit.lsn for commit in found] == sorted({commit.lsn for commit in found})
    assert start < found[0].lsn
    assert found[-1].lsn < end


def test_restore_points_are_found_by_whatever_name(cluster: Cluster, tmp_path: Path) -> None:
    start = cluster.switch()
    names = ["full-20261122T000000Z.0123456789abcdef", "a name\nof two lines", "désc: RESTORE_POINT x"]
    ends = []
    with cluster.server.superuser.connect(application_name="test", autocommit=True) as session:
        for name in names:
            ends.append(Lsn.parse(session.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()[0]))
    end = cluster.switch()
    found = Window(cluster, tmp_path, start, end).read(restore_points)[:3]
    assert [point.name for point in found] == names
    assert all(0 < after - point.lsn < 200 for point, after in zip(found, ends, strict=True))


def test_a_name_that_looks_like_a_record_is_none(cluster: Cluster, tmp_path: Path) -> None:
    """Anybody may choose what a prepared transaction is called."""
    start = cluster.switch()
    then = "2001-01-01 00:00:00.000000 UTC"
    forged = f"x: {then}\nrmgr: Transaction len (rec/tot): 34/34, tx: 7, lsn: 0/01, prev 0/01, desc: COMMIT {then}"
    for rest in ("", "; x"):
        with cluster.server.superuser.connect(application_name="test", autocommit=True) as session:
            session.execute("BEGIN")
            session.execute("INSERT INTO filler VALUES ('')")
            session.execute(f"PREPARE TRANSACTION '{forged}{rest}'")
            session.execute(f"ROLLBACK PREPARED '{forged}{rest}'")
    end = cluster.switch()
    found = Window(cluster, tmp_path, start, end).read(commits)
    assert [commit.committed for commit in found] == [False, False]
    assert all(commit.time.year > 2001 for commit in found)


@pytest.mark.requirement("R4.2")
def test_a_whole_window_ends_with_its_switch(cluster: Cluster, tmp_path: Path) -> None:
    start = cluster.switch()
    cluster.fill(20)
    cluster.run("SELECT pg_create_restore_point('end')")
    switched = Lsn.parse(cluster.value("SELECT pg_switch_wal()::text"))
    window = Window(cluster, tmp_path, start, Lsn(-(-switched // SEGMENT) * SEGMENT))
    assert len(window.names()) >= 2
    assert window.check() == switched - SWITCH_RECORD


@pytest.mark.requirement("R4.4")
def test_a_crash_leaves_no_hole(cluster: Cluster, tmp_path: Path) -> None:
    start = cluster.switch()
    cluster.fill(10)
    cluster.server.crash()
    cluster.server.start()
    cluster.fill(10)
    window = Window(cluster, tmp_path, start, cluster.switch())
    assert start < window.check() < window.end


def test_a_window_may_begin_and_end_within_a_record(cluster: Cluster, tmp_path: Path) -> None:
    cluster.switch()
    before = cluster.position()
    cluster.fill(40)
    first = Lsn((before // SEGMENT + 1) * SEGMENT)
    window = Window(cluster, tmp_path, first, Lsn(first + SEGMENT))
    assert Lsn(window.end - SEGMENT) < window.check() < window.end


@pytest.mark.requirement("R4.2")
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "missing", "swapped", "cut", "another cluster's end"])
def test_wal_that_does_not_replay_is_told_by_segment(cluster: Cluster, tmp_path: Path, damage: str) -> None:
    start = cluster.switch()
    cluster.fill(40)
    window = Window(cluster, tmp_path, start, cluster.switch())
    assert window.check()
    names = window.names()
    victim = tmp_path / names[1]
    content = bytearray(victim.read_bytes())
    match damage:
        case "flipped":
            content[SEGMENT // 2 + 100] ^= 1
        case "zeroed":
            content[SEGMENT // 2 : SEGMENT // 2 + 8192] = bytes(8192)
        case "swapped":
            content = bytearray((tmp_path / names[0]).read_bytes())
        case "cut":
            del content[SEGMENT // 2 :]
        case "another cluster's end":
            content[SEGMENT // 2 :] = bytes(SEGMENT // 2)
    victim.write_bytes(content)
    if damage == "missing":
        victim.unlink()
    with pytest.raises(WalBroken, match=victim.name) as raised:
        window.check()
    assert raised.value.segment == victim.name
    with pytest.raises(WalBroken, match=victim.name):
        window.read(commits)


def test_a_segment_without_a_record_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    start = cluster.switch()
    end = cluster.switch()
    window = Window(cluster, tmp_path, start, end)
    shutil.copy(tmp_path / window.names()[0], tmp_path / cluster.segment(end))
    window.end = Lsn(end + SEGMENT)
    with pytest.raises(WalBroken, match=cluster.segment(end)):
        window.check()


@pytest.mark.requirement("R5.3")
def test_a_window_over_a_promotion_is_read_on_both_timelines(cluster: Cluster, tmp_path: Path) -> None:
    directory = cluster.server.directory.with_name(f"{cluster.server.directory.name}-standby")
    with Standby(directory, cluster.server) as standby:
        follower = Cluster.__new__(Cluster)
        follower.server = standby
        start = cluster.switch()
        number = "SELECT pg_current_xact_id()::text::bigint"
        before = cluster.value(f"INSERT INTO filler VALUES ('') RETURNING ({number})")
        cluster.switch()
        within = cluster.value(f"INSERT INTO filler VALUES ('') RETURNING ({number})")
        written = cluster.position()
        while identify_system(follower.login).flushed < written:
            pass
        standby.promote()
        after = follower.value(f"INSERT INTO filler VALUES ('') RETURNING ({number})")
        end = follower.switch()
        text = timeline_history(follower.login, 2)
        assert text is not None
        history = TimelineHistory.parse(2, text)
        window = Window(follower, tmp_path, start, end, timeline=2)
        assert set(history.segment_names(start, end, SEGMENT)) <= set(window.names())
        found = window.read(commits)
        times = commit_times(follower, before, within, after)
    assert [commit.time for commit in found if commit.time in times] == times
    assert window.check() == max(window.check(), found[-1].lsn)

    old = history.segment_names(start, end, SEGMENT)
    damaged = tmp_path / next(name for name in old if name.startswith("00000001"))
    damaged.unlink()
    with pytest.raises(WalBroken, match="is broken: it is missing"):
        window.check()


def test_without_any_segment_nothing_is_read(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no WAL segments"):
        check_window(tools_of(cluster.server.major), tmp_path, Lsn(0), Lsn(SEGMENT), 1)
