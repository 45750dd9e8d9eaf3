"""What the reports say."""

from __future__ import annotations

from include.operators.report import told

SUMMARY = {
    "attempt": "684a9dfafa8ea7c7",
    "bytes_per_second": 10_980_036,
    "commit": "2622070f",
    "consistency_point": "2026-11-22T19:14:06+00:00",
    "id": "full-20261122T000000Z",
    "locks_held_ms": 55.6,
    "objects": 564,
    "ratio": 1.47,
    "raw_bytes": 126_929_217,
    "rows": 210_006,
    "seconds": 11.6,
    "stored_bytes": 86_099_582,
    "tables": 17,
    "warnings": 1,
    "write_stop_ms": 59.5,
}


def test_a_summary_reads_well_whatever_the_order_it_comes_in() -> None:
    assert told(SUMMARY) == told(dict(reversed(SUMMARY.items())))
    assert told(SUMMARY)["size"] == "126.9 MB, stored 86.1 MB (1.47 times smaller)"
    assert told(SUMMARY)["duration"] == "11.6 s, 11.0 MB/s"
    assert next(iter(told(SUMMARY))) == "backup"


def test_an_empty_backup_has_no_ratio_and_no_speed() -> None:
    empty = told({**SUMMARY, "ratio": None, "bytes_per_second": None, "stored_bytes": 0, "raw_bytes": 0})
    assert empty["size"] == "0.0 MB, stored 0.0 MB"
    assert empty["duration"] == "11.6 s"
