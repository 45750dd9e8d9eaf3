"""The policy that ships says what docs/requirements.md says, item by item."""

from __future__ import annotations

from datetime import timedelta
from fnmatch import fnmatch

import pytest

from include.policy import Component, Period, Policy, load_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


@pytest.mark.requirement("R1.1")
def test_full_is_daily_kept_thirty_days_and_compressed(policy: Policy) -> None:
    full = policy.backups.full
    assert (full.schedule, full.retention, full.compressed) == ("0 0 * * *", Period(30, "days"), True)


@pytest.mark.requirement("R1.2")
def test_incremental_is_hourly_kept_seven_days_and_compressed(policy: Policy) -> None:
    incremental = policy.backups.incremental
    assert (incremental.schedule, incremental.retention, incremental.compressed) == (
        "0 * * * *",
        Period(7, "days"),
        True,
    )


@pytest.mark.requirement("R1.3")
def test_snapshot_is_on_sundays_kept_twelve_weeks_and_point_in_time(policy: Policy) -> None:
    snapshot = policy.backups.snapshot
    assert (snapshot.schedule, snapshot.retention, snapshot.point_in_time) == ("0 0 * * 0", Period(12, "weeks"), True)


def _names(policy: Policy, source: str) -> set[str]:
    return {component.name for component in policy.components.values() if component.source == source}


@pytest.mark.requirement("R2.1")
def test_database_components_and_their_tables(policy: Policy) -> None:
    assert _names(policy, "database") == {"user_data", "chat_history", "system_config", "billing"}
    assert policy.sources.database.tool == "pg_dump"
    owners = {
        "users": "user_data",
        "user_settings": "user_data",
        "sessions": "user_data",
        "chats": "chat_history",
        "messages": "chat_history",
        "messages_2026_11": "chat_history",
        "attachments": "chat_history",
        "system_settings": "system_config",
        "feature_flags": "system_config",
        "invoices": "billing",
        "subscriptions": "billing",
    }
    for table, owner in owners.items():
        claims = [
            component.name
            for component in policy.components_of("database")
            if any(fnmatch(f"public.{table}", pattern) for pattern in component.tables)
        ]
        assert claims == [owner], table


@pytest.mark.requirement("R2.2")
def test_object_components_and_their_prefixes(policy: Policy) -> None:
    assert {c.name: c.prefixes for c in policy.components_of("objects")} == {
        "user_uploads": ("uploads/",),
        "generated_content": ("generated/",),
        "media_files": ("media/",),
    }
    assert policy.sources.objects.tool == "s3cmd"
    assert policy.sources.objects.references == ("SELECT storage_key, bytes FROM public.attachments",)


@pytest.mark.requirement("R2.3")
def test_configuration_components_and_their_files(policy: Policy) -> None:
    assert {c.name: (c.files, c.archived) for c in policy.components_of("configuration")} == {
        "environment": (("environment/*.env",), True),
        "system_settings": ((), True),
        "api_keys": (("secrets/*",), False),
    }
    assert policy.sources.configuration.tool == "git"


@pytest.mark.requirement("R3.1")
def test_primary_bucket(policy: Policy) -> None:
    primary = policy.storage.primary
    assert (primary.bucket, primary.region, primary.encryption, primary.versioning) == (
        "synapse-backups",
        "eu-west-1",
        "AES-256",
        True,
    )


@pytest.mark.requirement("R3.2")
def test_replica_bucket(policy: Policy) -> None:
    replica = policy.storage.replica
    assert (replica.bucket, replica.region, replica.encryption, replica.replication) == (
        "synapse-backups-dr",
        "us-east-1",
        "AES-256",
        "cross-region",
    )


@pytest.mark.requirement("R3.3")
def test_cold_tier(policy: Policy) -> None:
    cold = policy.storage.cold
    assert (cold.storage_class, cold.transition_after, cold.retrieval, cold.kept) == (
        "GLACIER",
        Period(90, "days"),
        "Standard",
        Period(7, "years"),
    )


@pytest.mark.requirement("R3.3", "R8.1")
def test_rolling_backups_never_reach_the_cold_tier_and_archives_all_do(policy: Policy) -> None:
    cold = policy.storage.cold.transition_after
    rolling = (policy.backups.full, policy.backups.incremental, policy.backups.snapshot)
    assert all(backup.retention.always_shorter_than(cold) for backup in rolling)
    assert all(cold.always_shorter_than(kept) for kept in policy.compliance.retention.values())
    assert policy.backups.archive.schedule == "0 2 1 * *"


@pytest.mark.requirement("R1.1")
def test_what_stays_beyond_its_period_and_how_much_goes_at_once(policy: Policy) -> None:
    retention = policy.storage.retention
    kept = retention.minimum_kept
    assert (kept.full, kept.incremental, kept.snapshot) == (3, 24, 2)
    assert (retention.deletions_per_run, retention.lease) == (50_000, timedelta(minutes=30))


@pytest.mark.requirement("R4.1")
def test_preparation_asks_for_disk_space(policy: Policy) -> None:
    assert policy.preparation.minimum_free_bytes == 5 * 10**9
    assert policy.preparation.clock_skew == timedelta(seconds=5)


@pytest.mark.requirement("R4.3")
def test_the_write_stop_always_ends_and_the_application_is_never_the_deadlocks_victim(policy: Policy) -> None:
    barrier = policy.barrier
    assert barrier.deadlock_timeout == timedelta(milliseconds=20)
    assert barrier.deadlock_timeout < barrier.lock_timeout == timedelta(seconds=1)
    assert barrier.lock_timeout < barrier.statement_timeout == barrier.idle_timeout == timedelta(seconds=5)
    assert (barrier.tries, barrier.backoff, barrier.long_running) == (5, timedelta(seconds=2), timedelta(minutes=1))


@pytest.mark.requirement("R4.3", "R4.4")
def test_the_pipeline(policy: Policy) -> None:
    pipeline = policy.pipeline
    assert (pipeline.compression_level, pipeline.compression_workers) == (2, 2)
    assert (pipeline.compression_lowest, pipeline.compression_highest) == (1, 9)
    assert (pipeline.segment_bytes, pipeline.part_bytes) == (64 * 10**6, 8 * 2**20)
    assert (pipeline.parts_in_flight, pipeline.streams_at_once) == (4, 2)
    assert (pipeline.stall_limit, pipeline.progress_every) == (timedelta(minutes=5), timedelta(seconds=5))


@pytest.mark.requirement("R4.5")
def test_every_component_of_every_source_gets_its_turn_as_the_sample_within_the_retention(policy: Policy) -> None:
    turns = [component.name for component in policy.sample_turns]
    assert set(turns) == {*policy.components, "unclassified_database", "unclassified_objects"}
    assert len(turns) == len(set(turns)) <= 30


@pytest.mark.requirement("R4.5")
def test_a_sudden_shrink_is_half_of_a_usual_week(policy: Policy) -> None:
    verification = policy.verification
    assert (verification.shrunk_to, verification.compared_with) == (0.5, 7)
    assert (verification.shrunk_from_items, verification.shrunk_from_bytes) == (100, 10**6)


@pytest.mark.requirement("R4.6")
def test_success_reports_error_alerts_and_status_updates_have_readers(policy: Policy) -> None:
    told = policy.notifications
    assert told.success_report == told.status_update == ("operations@synapse.example",)
    assert told.error_alert == ("operations@synapse.example", "on-call@synapse.example")


@pytest.mark.requirement("R5.4")
def test_rto(policy: Policy) -> None:
    assert policy.recovery.rto == timedelta(hours=4)


@pytest.mark.requirement("R5.5")
def test_rpo_and_the_alert_before_it_is_missed(policy: Policy) -> None:
    recovery = policy.recovery
    assert recovery.rpo == timedelta(hours=1)
    assert policy.backups.incremental.shipped_within == timedelta(minutes=1)
    assert policy.backups.incremental.shipped_within < recovery.rpo_alert == timedelta(minutes=45)
    assert recovery.rpo_files == timedelta(minutes=90)


@pytest.mark.requirement("R5.2")
def test_the_service_is_asked_for_its_health_a_login_a_chat_an_upload_and_a_write(policy: Policy) -> None:
    service = policy.recovery.service
    assert service.command == ("python", "-m", "include.sandbox.service")
    assert (service.started_within, service.answered_within) == (timedelta(minutes=1), timedelta(seconds=10))
    assert [request.ask for request in service.requests.values()] == [
        "GET /health",
        "POST /login",
        "GET /chats",
        "GET /chats/${chat}",
        "GET /uploads/${attachment}",
        "POST /chats/${chat}/messages",
        "PUT /messages/${message}/uploads/probe.json",
    ]
    assert [name for name, request in service.requests.items() if request.write] == ["new message", "new upload"]


@pytest.mark.requirement("R6.1")
def test_backup_metrics(policy: Policy) -> None:
    assert policy.monitoring.metrics.backup == ("size", "duration", "success_rate")
    assert policy.monitoring.metrics.success_rate_over == Period(30, "days")


@pytest.mark.requirement("R6.2")
def test_storage_metrics(policy: Policy) -> None:
    metrics = policy.monitoring.metrics
    assert metrics.storage == ("usage", "cost", "growth_rate")
    assert (metrics.usd_per_gib_month.standard, metrics.usd_per_gib_month.glacier) == (0.023, 0.0036)


@pytest.mark.requirement("R6.3")
def test_performance_metrics(policy: Policy) -> None:
    assert policy.monitoring.metrics.performance == ("backup_speed", "restore_speed", "compression_ratio")


@pytest.mark.requirement("R6.4")
def test_critical_alerts(policy: Policy) -> None:
    critical = policy.monitoring.critical
    assert set(type(critical).model_fields) == {"backup_failure", "storage_full", "corruption_detected"}
    assert critical.backup_failure.failures == critical.corruption_detected.objects == 1
    assert (critical.storage_full.capacity_bytes, critical.storage_full.used) == (5 * 10**12, 0.9)


@pytest.mark.requirement("R6.5")
def test_warnings(policy: Policy) -> None:
    warnings = policy.monitoring.warnings
    assert set(type(warnings).model_fields) == {"slow_backup", "high_growth_rate", "retention_violation"}
    slow = warnings.slow_backup
    assert (slow.times_usual, slow.compared_with) == (1.5, 14)
    assert [slow.longest.full, slow.longest.incremental, slow.longest.snapshot] == [
        timedelta(hours=2),
        timedelta(minutes=30),
        timedelta(hours=3),
    ]
    assert (warnings.high_growth_rate.share, warnings.high_growth_rate.within) == (0.2, Period(7, "days"))
    assert warnings.retention_violation.overdue == Period(2, "days")


@pytest.mark.requirement("R7.1")
def test_encryption_at_rest_and_its_yearly_rotation(policy: Policy) -> None:
    assert policy.storage.primary.encryption == policy.storage.replica.encryption == "AES-256"
    assert policy.keys.rotation == Period(1, "years")
    assert policy.keys.handover == Period(7, "days")
    assert policy.keys.public_keys_kept == policy.compliance.longest == Period(7, "years")


@pytest.mark.requirement("R7.2")
def test_encryption_in_transit(policy: Policy) -> None:
    assert (policy.security.tls_minimum, policy.security.verify_certificates) == ("1.3", True)


@pytest.mark.requirement("R7.3")
def test_roles(policy: Policy) -> None:
    assert set(type(policy.security.roles).model_fields) == {"backup_admin", "restore_operator", "audit_viewer"}


@pytest.mark.requirement("R7.4")
def test_mfa_and_source_networks(policy: Policy) -> None:
    assert policy.security.mfa_required is True
    assert [str(network) for network in policy.security.networks_allowed] == [
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
    ]
    assert all(network.is_private for network in policy.security.networks_allowed)


@pytest.mark.requirement("R8.1")
def test_retention_classes_and_who_is_in_them(policy: Policy) -> None:
    assert policy.compliance.retention == {
        "financial": Period(7, "years"),
        "personal": Period(5, "years"),
        "operational": Period(1, "years"),
    }
    classes: dict[str, set[str]] = {}
    for component in policy.components.values():
        classes.setdefault(component.retention_class, set()).add(component.name)
    assert classes == {
        "financial": {"billing"},
        "personal": {"user_data", "chat_history", "user_uploads", "generated_content", "media_files"},
        "operational": {"system_config", "environment", "system_settings", "api_keys"},
    }


@pytest.mark.requirement("R8.1")
@pytest.mark.parametrize("source", ["database", "objects", "configuration"])
def test_what_nobody_named_is_personal(policy: Policy, source: str) -> None:
    assert policy.unclassified(source) == Component(
        name=f"unclassified_{source}", source=source, retention_class="personal"
    )


@pytest.mark.requirement("R8.2")
def test_audit_log(policy: Policy) -> None:
    assert policy.compliance.audit.kept == Period(2, "years")
    assert policy.compliance.audit.records == ("who", "what", "when", "where")


@pytest.mark.requirement("R8.3")
def test_monthly_reports(policy: Policy) -> None:
    reports = policy.compliance.reports
    assert reports.schedule == "0 6 1 * *"
    assert reports.recipients.security_team == ("security@synapse.example",)
    assert reports.recipients.compliance_officer == ("compliance@synapse.example",)


def test_connections_that_the_other_rooms_open(policy: Policy) -> None:
    assert (policy.storage.primary.connection, policy.storage.replica.connection) == (
        "synapse_backups_primary",
        "synapse_backups_replica",
    )
    database = policy.sources.database
    assert database.barrier_connection == "synapse_database_barrier"
    assert database.dump_connection == "synapse_database_dump"
    assert database.replication_connection == "synapse_database_replication"
    assert database.scratch_connection == "synapse_database_scratch"
    assert policy.sources.objects.connection == "synapse_objects"
    assert policy.sources.configuration.connection == "synapse_configuration"


def test_a_dead_try_is_reaped_after_48_hours(policy: Policy) -> None:
    assert policy.storage.attempts_reaped_after == Period(48, "hours")
