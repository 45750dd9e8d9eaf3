"""How long writers are stopped, under load."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks.place import Place
from include.backup.consistency import consistency_point
from include.policy import load_policy

WRITERS = 16
BARRIERS = 100
PAUSE_SECONDS = 0.1
"""Between two barriers, so that the writers are at full speed when the next one comes."""
SETTLED_SECONDS = 2.0

TRANSACTION = """\
\\set user random(10000000, {last_user})
BEGIN;
INSERT INTO messages (chat_id, role, body, tokens)
    SELECT id, 'user', repeat('write stop ', 40), 110 FROM chats ORDER BY id LIMIT 1;
UPDATE users SET last_seen_at = now() WHERE id = :user;
END;
"""


def write_stops(place: Place) -> list[float]:
    """The seconds of each write stop: the longest that a writer can have waited, as a backup's manifest tells it."""
    database = place.installation.synapse.database
    with database.connect(application_name="benchmarks") as session:
        row = session.execute("SELECT max(id) FROM users").fetchone()
    script = Path(place.directory, "write.sql")
    script.write_text(TRANSACTION.format(last_user=row[0] if row else 0))
    seconds = BARRIERS * 2  # it is ended when we are done
    writers = subprocess.Popen(
        [place.tools.pgbench, "-n", f"--client={WRITERS}", f"--time={seconds}", f"--file={script}"],
        env={**database.environment("benchmarks"), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(SETTLED_SECONDS)
        application, policy = place.installation.application(), load_policy().barrier
        stops = []
        for number in range(BARRIERS):
            with consistency_point(application, f"bench-{number}", policy) as point:
                stops.append(point.stopped)
            time.sleep(PAUSE_SECONDS)
        if writers.poll() is not None:
            raise RuntimeError(f"pgbench ended by itself with {writers.returncode}: nobody was writing")
        return stops
    finally:
        writers.terminate()
        writers.wait()
