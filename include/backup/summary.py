"""A committed backup in a few facts."""

from __future__ import annotations

from typing import Any

from include.repository.manifest import Manifest


def summary(manifest: Manifest) -> dict[str, Any]:
    """The facts of a backup that reports and people want, small enough for an XCom."""
    wal = manifest.wal
    log = {"log": f"{wal.start_lsn} to {wal.end_lsn}, {len(wal.files)} files"} if wal else {}
    raw, stored = manifest.raw_bytes, manifest.stored_bytes
    seconds = manifest.cost.milliseconds / 1000
    return {
        "id": manifest.id,
        "attempt": manifest.attempt,
        "consistency_point": manifest.consistency_point.time.isoformat(),
        "raw_bytes": raw,
        "stored_bytes": stored,
        "ratio": round(raw / stored, 2) if stored else None,
        "seconds": round(seconds, 1),
        "bytes_per_second": round(raw / seconds) if seconds else None,
        "write_stop_ms": round(manifest.write_stop.requested_us / 1000, 1),
        "locks_held_ms": round(manifest.write_stop.held_us / 1000, 1),
        "tables": manifest.database.tables,
        "rows": manifest.database.rows,
        "objects": manifest.objects.objects,
        "commit": manifest.consistency_point.configuration_commit,
        "peak_memory_bytes": manifest.cost.peak_memory_bytes,
        "warnings": len(manifest.warnings),
        **log,
    }
