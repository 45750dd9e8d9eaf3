"""The policy as typed, frozen data: every number of the design document (R1 to R8), and the contradictions it refuses.

A field is checked against the fields declared above it, and a section against the sections above it, so every refusal
has its own place. What contradicts a section that is itself refused shows once that section is mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from string import Template
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from include.policy.quantities import (
    Address,
    Ask,
    BucketName,
    CalendarPeriod,
    Cron,
    Days,
    Duration,
    FileGlob,
    Name,
    Network,
    Period,
    Prefix,
    Recipient,
    Share,
    Size,
    Some,
    Statement,
    Status,
    Table,
    Text,
    not_empty,
    refusal,
    runs_on,
)

SourceKind = Literal["database", "objects", "configuration"]
Place = tuple[str | int, ...]

# What a component of each source lists, and whether it must list any: configuration always has the git bundle.
_LISTS: dict[SourceKind, tuple[str, bool]] = {
    "database": ("tables", True),
    "objects": ("prefixes", True),
    "configuration": ("files", False),
}
UNCLASSIFIED = "unclassified_"


class Section(BaseModel):
    """One part of the policy: it says everything that it must, nothing that it need not, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- R8 compliance ---------------------------------------------------------------------------------------------------


class Audit(Section):
    """The audit log (R8.2)."""

    kept: CalendarPeriod
    records: tuple[Literal["who", "what", "when", "where"], ...]

    @field_validator("records")
    @classmethod
    def _complete(cls, records: tuple[str, ...]) -> tuple[str, ...]:
        if missing := {"who", "what", "when", "where"} - set(records):
            raise refusal(f"lacks {', '.join(sorted(missing))}.", "Record who, what, when and where (R8.2).")
        return records


class Recipients(Section):
    """Whom the monthly report goes to (R8.3)."""

    security_team: Some[Address]
    compliance_officer: Some[Address]


class Reports(Section):
    """The monthly compliance report (R8.3)."""

    schedule: Cron
    recipients: Recipients


class Compliance(Section):
    """R8: `retention` is how long each class is kept; what nobody classified counts as `unclassified_as`."""

    retention: Annotated[dict[Name, CalendarPeriod], AfterValidator(not_empty)]
    unclassified_as: str
    audit: Audit
    reports: Reports

    @field_validator("unclassified_as")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        if problem := _unknown_class(name, info.data.get("retention")):
            raise problem
        return name

    @property
    def longest(self) -> Period:
        """The longest of the classes' periods: seven years, the financial class (R8.1)."""
        longest, *others = self.retention.values()
        for period in others:
            longest = period if longest.always_shorter_than(period) else longest
        return longest


# --- R5 recovery -----------------------------------------------------------------------------------------------------


class ServiceRequest(Section):
    """One thing that is asked of the application, over HTTP, and what its answer must be (R5.2).

    `ask` is a method and a path. Its `path`, its `bearer` token and the texts of its JSON `body` may say `${name}`: a
    value of `Service.files`, or one that an earlier answer gave. `holds` are places that the JSON answer must have, as
    `messages.0.id`, and `keep` gives some of them names. One that changes something is marked `write`.
    """

    ask: Ask
    body: dict[str, Any] | None = None
    bearer: Text | None = None
    status: Status = 200
    holds: tuple[Text, ...] = ()
    keep: dict[Name, Text] = {}
    write: bool = False

    @property
    def method(self) -> str:
        """`GET`, `POST`, …"""
        return self.ask.partition(" ")[0]

    @property
    def path(self) -> str:
        """What is behind the host and the port, from the first slash on."""
        return self.ask.partition(" ")[2]

    def names(self) -> Iterator[tuple[str, str | None]]:
        """The field and the name of each `${name}` in it; None for a dollar that begins none."""
        for field, value in (("ask", self.path), ("bearer", self.bearer), ("body", self.body)):
            for text in _texts(value):
                template = Template(text)
                yield from ((field, name) for name in template.get_identifiers())
                if not template.is_valid():
                    yield field, None

    @field_validator("write")
    @classmethod
    def _writes(cls, write: bool, info: ValidationInfo) -> bool:
        if write and info.data.get("ask", "").startswith("GET "):
            raise refusal("is said of a GET, which changes nothing.", "Mark the request that writes.")
        return write


class Service(Section):
    """The application as it is started and asked after a recovery (R5.2).

    `files` are secrets of the restored configuration, by the names that requests use for them. The first request is
    asked until it is answered as it should be, for `started_within`; every other once. Each answer is waited for
    `answered_within`.
    """

    command: Some[Text]
    started_within: Duration
    answered_within: Duration
    files: dict[Name, FileGlob]
    requests: Annotated[dict[Text, ServiceRequest], AfterValidator(not_empty)]

    @field_validator("files")
    @classmethod
    def _single(cls, files: dict[str, str]) -> dict[str, str]:
        _refuse_all(
            _unless(not set("*?[") & set(path), name, f"is {path!r}, which is no single file.", "Name one file.")
            for name, path in files.items()
        )
        return files

    @field_validator("requests")
    @classmethod
    def _askable(cls, requests: dict[str, ServiceRequest], info: ValidationInfo) -> dict[str, ServiceRequest]:
        known, problems = set(info.data.get("files", ())), list[Misfit]()
        for number, (name, request) in enumerate(requests.items()):
            if not number and (request.method != "GET" or request.bearer or request.body):
                problems.append(
                    (
                        (name, "ask"),
                        refusal("is asked again and again until the application is up.", "Begin with a plain GET."),
                    )
                )
            for field, wanted in request.names():
                if wanted is None:
                    problems.append(((name, field), refusal("has a $ that names nothing.", "Write ${name}, or $$.")))
                elif wanted not in known and "files" in info.data:
                    what = f"names ${{{wanted}}}, which neither files nor an earlier answer gives."
                    problems.append(((name, field), refusal(what, "Keep it of an earlier request, or name a file.")))
            known.update(request.keep)
        if not any(request.write for request in requests.values()):
            problems.append(((), refusal("has no request that writes.", "Mark one of them `write: true` (R5.2).")))
        _refuse_all(problems)
        return requests


class SchemaVersion(Section):
    """Where the application's schema version is written: one value that the database tells, and a file of the
    configuration that must say the same.
    """

    database: Statement
    configuration: FileGlob


class Expectations(Section):
    """What must hold of the application, whatever moment came back (R5.2): a row of an `invariant` is a failure."""

    schema_version: SchemaVersion
    invariants: dict[Name, Statement]


class Recovery(Section):
    """R5.2, R5.4 and R5.5. `rpo_alert` comes before the database's RPO is missed; `rpo_files` is the files' worst case.

    Recovered objects go to `objects_connection`; over what is live through the other two, which need not exist until
    they are needed.
    """

    rto: Duration
    rpo: Duration
    rpo_alert: Duration
    rpo_files: Duration
    objects_connection: Text
    live_database_connection: Text
    live_objects_connection: Text
    service: Service
    expectations: Expectations

    @field_validator("rpo_alert")
    @classmethod
    def _early(cls, alert: timedelta, info: ValidationInfo) -> timedelta:
        if alert >= info.data.get("rpo", timedelta.max):
            raise refusal("is not before the RPO.", "Alert before rpo is missed (R5.5).")
        return alert

    @field_validator("rpo_files")
    @classmethod
    def _late(cls, worst: timedelta, info: ValidationInfo) -> timedelta:
        if worst < info.data.get("rpo", timedelta.min):
            raise refusal("is below the RPO.", "Files have no WAL: give them rpo and an hourly run, or more.")
        return worst


# --- R1 backup types -------------------------------------------------------------------------------------------------


class BackupType(Section):
    """One row of R1: `schedule` is cron in UTC, `retention` a promise that any moment of it can be restored."""

    schedule: Cron
    retention: CalendarPeriod
    compressed: Literal[True]


class IncrementalBackup(BackupType):
    """R1.2; WAL is also shipped between the runs, `shipped_within` of being written (R5.5).

    An increment without a base to stand on fails, unless `starts_base` lets it make a snapshot first.
    """

    shipped_within: Duration
    starts_base: bool


class SnapshotBackup(BackupType):
    """R1.3."""

    point_in_time: Literal[True]


class Archive(Section):
    """The archive tier: a standalone copy per retention class, kept for the class's period (R3.3, R8.1)."""

    schedule: Cron


class Backups(Section):
    """R1, and the monthly archive that makes R3.3 and R8.1 true."""

    full: BackupType
    incremental: IncrementalBackup
    snapshot: SnapshotBackup
    archive: Archive


# --- R3 storage ------------------------------------------------------------------------------------------------------


class Bucket(Section):
    """Where a copy lives; `connection` is the Airflow connection that opens it (R3.1)."""

    bucket: BucketName
    region: Text
    connection: Text
    encryption: Literal["AES-256"]
    versioning: Literal[True]


class Replica(Bucket):
    """The second region (R3.2).

    `within` is how long the bucket's own replication may take, where it has one, before what is not there is copied;
    `verified_sample` how many pieces of each backup are read back from here and decrypted.
    """

    replication: Literal["cross-region"]
    within: Duration
    copied_at_once: PositiveInt
    verified_sample: PositiveInt


RetrievalTier = Literal["Expedited", "Standard", "Bulk"]
RETRIEVAL_TIERS: tuple[RetrievalTier, ...] = get_args(RetrievalTier)


class Retrieval(Section):
    """What one tier of retrieval promises, and what it costs in US dollars, by GiB and by object."""

    within: Duration
    usd_per_gib: NonNegativeFloat
    usd_per_1000_objects: NonNegativeFloat


class Cold(Section):
    """Glacier (R3.3), for the archive tier only: nothing that a current recovery needs is ever in it (R5.4).

    What is retrieved stays readable `thawed_for`; while it is waited for, it is `looked_at_every` so often.
    """

    storage_class: Literal["GLACIER"]
    transition_after: Days
    retrieval: RetrievalTier
    kept: CalendarPeriod
    thawed_for: Days
    looked_at_every: Duration
    retrievals: dict[RetrievalTier, Retrieval]

    @field_validator("retrievals")
    @classmethod
    def _each(cls, retrievals: dict[RetrievalTier, Retrieval]) -> dict[RetrievalTier, Retrieval]:
        if missing := set(RETRIEVAL_TIERS) - set(retrievals):
            raise refusal(f"lacks {', '.join(sorted(missing))}.", "Say of each tier what it promises and costs.")
        return retrievals


class Lifecycle(Section):
    """The buckets' own rules: of versions that are not current any more, and of uploads that were never ended."""

    noncurrent_expire_after: Days
    uploads_aborted_after: Days


class MinimumKept(Section):
    """How many sound backups of each type stay, whatever their age."""

    full: PositiveInt
    incremental: PositiveInt
    snapshot: PositiveInt


class Retention(Section):
    """How the periods of R1 and R8.1 are carried out: what stays beyond them, how much goes at once, who is waited for.

    What a reader reads is not deleted for `lease` after its last sign of life.
    """

    minimum_kept: MinimumKept
    deletions_per_run: PositiveInt
    lease: Duration

    @field_validator("lease")
    @classmethod
    def _bearable(cls, lease: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= lease <= timedelta(days=1):
            raise refusal(
                "is no time in which a reader surely gives three signs of life, and a dead one is not waited for long.",
                "Use 1 min to 24 hours.",
            )
        return lease


class Storage(Section):
    """R3. An attempt that no manifest names is garbage `attempts_reaped_after` it began.

    With `object_lock` what is written cannot be deleted before its retention is over: `governance` can be bypassed by
    who is allowed to, `compliance` by nobody.
    """

    primary: Bucket
    replica: Replica
    cold: Cold
    retention: Retention
    attempts_reaped_after: CalendarPeriod
    lifecycle_schedule: Cron
    lifecycle: Lifecycle
    object_lock: Literal["off", "governance", "compliance"]

    @field_validator("lifecycle")
    @classmethod
    def _after_the_reaper(cls, lifecycle: Lifecycle, info: ValidationInfo) -> Lifecycle:
        reaped: Period | None = info.data.get("attempts_reaped_after")
        _refuse_all(
            _unless(
                reaped is None or reaped.always_shorter_than(lifecycle.uploads_aborted_after),
                "uploads_aborted_after",
                f"is {lifecycle.uploads_aborted_after}, within attempts_reaped_after ({reaped}).",
                "Give it longer: the bucket knows no try that lives, the reaper does.",
            )
        )
        return lifecycle

    @field_validator("replica")
    @classmethod
    def _apart(cls, replica: Replica, info: ValidationInfo) -> Replica:
        primary: Bucket | None = info.data.get("primary")
        _refuse_all(
            _unless(
                primary is None or getattr(replica, name) != getattr(primary, name),
                name,
                f"is {getattr(replica, name)!r}, as the primary's.",
                f"Choose another {name}: the replica must outlive the primary (R3.2).",
            )
            for name in ("bucket", "region")
        )
        return replica


# --- R2 scope --------------------------------------------------------------------------------------------------------


class DatabaseSource(Section):
    """R2.1: Airflow connections, one for each of the logins with the least grants, and the scratch server."""

    tool: Literal["pg_dump"]
    barrier_connection: Text
    dump_connection: Text
    replication_connection: Text
    scratch_connection: Text


class ObjectSource(Section):
    """R2.2; each statement of `references` yields the object keys that the database names, and may say their bytes in a
    second column.
    """

    tool: Literal["s3cmd"]
    connection: Text
    references: tuple[Statement, ...]


class ConfigurationSource(Section):
    """R2.3."""

    tool: Literal["git"]
    connection: Text


class Sources(Section):
    """R2: what is backed up, and through which connections."""

    database: DatabaseSource
    objects: ObjectSource
    configuration: ConfigurationSource


class Component(Section):
    """One component of R2: what belongs to it, and the class that decides how long its archives are kept (R8.1).

    `tables` are `schema.table` with shell globs, `prefixes` key prefixes, `files` globs below the checkout, beside the
    git bundle. One that is not `archived` never reaches the archive tier: secrets.
    """

    name: Name
    source: SourceKind
    retention_class: str
    tables: tuple[Table, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    files: tuple[FileGlob, ...] = ()
    archived: bool = True


# --- R4 backup process -----------------------------------------------------------------------------------------------


class Preparation(Section):
    """R4.1: the temporary directory needs this much free; no clock is further than `clock_skew` from the worker's."""

    minimum_free_bytes: Size
    clock_skew: Duration


class Barrier(Section):
    """R4.3, the write stop: every wait in it has an end, so that no backup can hold the application for long."""

    lock_timeout: Duration
    deadlock_timeout: Duration
    statement_timeout: Duration
    idle_timeout: Duration
    tries: PositiveInt
    backoff: Duration
    long_running: Duration

    @field_validator("deadlock_timeout")
    @classmethod
    def _first_victim(cls, timeout: timedelta, info: ValidationInfo) -> timedelta:
        if timeout >= info.data.get("lock_timeout", timedelta.max):
            what = (
                "is not below lock_timeout, so a deadlock would end the application's transaction, not the barrier's."
            )
            raise refusal(what, "Lower it; 20 ms is the measured choice.")
        return timeout

    @field_validator("statement_timeout")
    @classmethod
    def _last_resort(cls, timeout: timedelta, info: ValidationInfo) -> timedelta:
        if timeout < info.data.get("lock_timeout", timedelta.min):
            raise refusal("is below lock_timeout, which it would cut short.", "Raise it to lock_timeout at least.")
        return timeout


ZstdLevel = Annotated[int, Field(ge=1, le=19)]


class Pipeline(Section):
    """How bytes move (R4.3), and how their progress is watched (R4.4)."""

    compression_level: ZstdLevel
    compression_lowest: ZstdLevel
    compression_highest: ZstdLevel
    compression_workers: PositiveInt
    segment_bytes: Size
    part_bytes: Size
    parts_in_flight: PositiveInt
    streams_at_once: PositiveInt
    stall_limit: Duration
    progress_every: Duration

    @field_validator("compression_highest")
    @classmethod
    def _around(cls, highest: int, info: ValidationInfo) -> int:
        lowest, level = info.data.get("compression_lowest", 1), info.data.get("compression_level", highest)
        if not lowest <= level <= highest:
            raise refusal(
                f"leaves level {level} outside of {lowest} to {highest}.",
                "Put compression_level between compression_lowest and compression_highest.",
            )
        return highest

    @field_validator("segment_bytes")
    @classmethod
    def _segment(cls, size: int) -> int:
        if not 64 * 2**10 <= size <= 256 * 10**6:
            raise refusal(f"is {size} bytes.", "Use 64 KiB to 256 MB: segments are restored in parallel.")
        return size

    @field_validator("part_bytes")
    @classmethod
    def _part(cls, size: int) -> int:
        if not 5 * 2**20 <= size <= 256 * 10**6:
            raise refusal(f"is {size} bytes.", "Use 5 MiB, S3's least part, to 256 MB, the longest segment.")
        return size

    @field_validator("progress_every")
    @classmethod
    def _often(cls, interval: timedelta, info: ValidationInfo) -> timedelta:
        if interval >= info.data.get("stall_limit", timedelta.max):
            raise refusal("is not below stall_limit, so a stalled stream would end unseen.", "Lower it; 5 s is usual.")
        return interval


class Verification(Section):
    """R4.5: how many objects are a sample of them, and what is a sudden shrink.

    It is one when of what the median of the last `compared_with` backups had, `shrunk_from_items` rows or objects or
    more, or `shrunk_from_bytes` or more, less than `shrunk_to` is there now.
    """

    sample_objects: PositiveInt
    shrunk_to: Share
    compared_with: PositiveInt
    shrunk_from_items: PositiveInt
    shrunk_from_bytes: Size


class Notifications(Section):
    """R4.6: who is told, by mail or over a channel."""

    success_report: tuple[Recipient, ...]
    error_alert: Some[Recipient]
    status_update: tuple[Recipient, ...]


# --- R6 monitoring ---------------------------------------------------------------------------------------------------


class Prices(Section):
    """What a GiB costs for a month in each storage class, in US dollars (R6.2)."""

    standard: PositiveFloat
    glacier: PositiveFloat


class Metrics(Section):
    """R6.1 to R6.3: what is measured, by name."""

    backup: tuple[Literal["size", "duration", "success_rate"], ...]
    storage: tuple[Literal["usage", "cost", "growth_rate"], ...]
    performance: tuple[Literal["backup_speed", "restore_speed", "compression_ratio"], ...]
    success_rate_over: CalendarPeriod
    usd_per_gib_month: Prices


class BackupFailure(Section):
    """Alert at this many failed runs in a row (R6.4)."""

    failures: PositiveInt


class StorageFull(Section):
    """Alert when `used` of `capacity_bytes` is taken (R6.4); a bucket has no end, so the capacity is the budget."""

    capacity_bytes: Size
    used: Share


class CorruptionDetected(Section):
    """Alert at this many objects that fail their check (R6.4)."""

    objects: PositiveInt


class Critical(Section):
    """R6.4."""

    backup_failure: BackupFailure
    storage_full: StorageFull
    corruption_detected: CorruptionDetected


class LongestRun(Section):
    """The longest that a run of each type may take before it counts as slow."""

    full: Duration
    incremental: Duration
    snapshot: Duration


class SlowBackup(Section):
    """Warn at `times_usual` the median of the last `compared_with` runs, or past `longest` (R6.5)."""

    times_usual: Annotated[float, Field(gt=1)]
    compared_with: PositiveInt
    longest: LongestRun


class HighGrowthRate(Section):
    """Warn when usage grows by `share` of itself `within` this period (R6.5)."""

    share: Share
    within: CalendarPeriod


class RetentionViolation(Section):
    """Warn about a backup still there `overdue` after its expiry, and about one gone before it (R6.5)."""

    overdue: CalendarPeriod


class Warnings(Section):
    """R6.5."""

    slow_backup: SlowBackup
    high_growth_rate: HighGrowthRate
    retention_violation: RetentionViolation


class Monitoring(Section):
    """R6."""

    metrics: Metrics
    critical: Critical
    warnings: Warnings


# --- R7 security -----------------------------------------------------------------------------------------------------


class Keys(Section):
    """R7.1: keys change every `rotation`, and within `handover` every worker has the new file.

    Old public keys verify as long as the oldest archive.
    """

    rotation: CalendarPeriod
    handover: CalendarPeriod
    schedule: Cron
    public_keys_kept: CalendarPeriod


class Roles(Section):
    """R7.3: what each role is for."""

    backup_admin: Text
    restore_operator: Text
    audit_viewer: Text


class Security(Section):
    """R7.2 to R7.4."""

    tls_minimum: Literal["1.3"]
    verify_certificates: Literal[True]
    roles: Roles
    mfa_required: Literal[True]
    networks_allowed: Some[Network]


# --- the whole -------------------------------------------------------------------------------------------------------


class Policy(Section):
    """The whole policy. `include.policy.load_policy` makes one from the file."""

    compliance: Compliance
    recovery: Recovery
    backups: Backups
    storage: Storage
    sources: Sources
    components: dict[str, Component]
    preparation: Preparation
    barrier: Barrier
    pipeline: Pipeline
    verification: Verification
    notifications: Notifications
    monitoring: Monitoring
    keys: Keys
    security: Security

    def components_of(self, source: SourceKind) -> list[Component]:
        """The components of one source, in the order of the file."""
        return [component for component in self.components.values() if component.source == source]

    def unclassified(self, source: SourceKind) -> Component:
        """The component of what is in the source and in no other one: *personal* until someone names it (R8.1)."""
        return Component(name=f"{UNCLASSIFIED}{source}", source=source, retention_class=self.compliance.unclassified_as)

    @property
    def sample_turns(self) -> tuple[Component, ...]:
        """Whose turn it is to be restored as a sample, one a day: every component of every source (R4.5)."""
        return (*self.components.values(), self.unclassified("database"), self.unclassified("objects"))

    @field_validator("storage")
    @classmethod
    def _replica_in_time(cls, storage: Storage, info: ValidationInfo) -> Storage:
        recovery: Recovery | None = info.data.get("recovery")
        _refuse_all(
            _unless(
                recovery is None or storage.replica.within < recovery.rpo_alert,
                ("replica", "within"),
                "is not below recovery.rpo_alert, so the RPO could not be kept.",
                "Lower it: the RPO is measured in the replica (R5.5).",
            )
        )
        return storage

    @field_validator("backups")
    @classmethod
    def _backups(cls, backups: Backups, info: ValidationInfo) -> Backups:
        recovery: Recovery | None = info.data.get("recovery")
        _refuse_all(
            _unless(
                recovery is None or backups.incremental.shipped_within < recovery.rpo_alert,
                ("incremental", "shipped_within"),
                "is not below recovery.rpo_alert, so the RPO could not be kept.",
                "Lower it; 1 min is the design's (R5.5).",
            )
        )
        return backups

    @field_validator("storage")
    @classmethod
    def _storage(cls, storage: Storage, info: ValidationInfo) -> Storage:
        compliance: Compliance | None = info.data.get("compliance")
        if compliance is None:
            return storage
        cold, minimum = storage.cold, storage.retention.minimum_kept
        backups: Backups | None = info.data.get("backups")
        expired = [
            f"{name} ({period})"
            for name, period in compliance.retention.items()
            if not cold.transition_after.always_shorter_than(period)
        ]
        _refuse_all(
            _unless(
                not expired,
                ("cold", "transition_after"),
                f"is {cold.transition_after}, at or after the expiry of {', '.join(expired)}.",
                "Move to the cold tier before every class expires (R3.3, R8.1).",
            ),
            _unless(
                cold.kept == compliance.longest,
                ("cold", "kept"),
                f"is {cold.kept}, but the longest retention class is kept {compliance.longest}.",
                "Give both the same period: the cold tier holds each archive for its class's (R3.3, R8.1).",
            ),
            *(
                _unless(
                    minimum_count <= _days_of(backup_type),
                    ("retention", "minimum_kept", name),
                    f"is {minimum_count}, more than are made in the {backup_type.retention} that each is kept (R1).",
                    "Lower it, or keep that type longer: a minimum is for when nothing new is made.",
                )
                for name, minimum_count, backup_type in (
                    (("full", minimum.full, backups.full), ("snapshot", minimum.snapshot, backups.snapshot))
                    if backups
                    else ()
                )
            ),
        )
        return storage

    @field_validator("components", mode="plain", json_schema_input_type=dict[str, Component])
    @classmethod
    def _components(cls, value: object, info: ValidationInfo) -> dict[str, Component]:
        """Check each by itself and then against its neighbours, so that one bad component hides no other's fault."""
        if not isinstance(value, Mapping) or not value:
            raise refusal("is no table of components.", "List them by name, as in `media: {source: objects, ...}`.")
        compliance: Compliance | None = info.data.get("compliance")
        components: dict[str, Component] = {}
        problems: list[InitErrorDetails] = []
        for name, fields in value.items():
            try:
                components[name] = Component.model_validate(
                    {**fields, "name": name} if isinstance(fields, Mapping) else fields
                )
            except ValidationError as error:
                problems.extend(_relocated(error, name))
        for name, component in components.items():
            problems.extend(_located(_misfits(component, compliance), name))
        problems.extend(_located(_claimed_twice(components.values())))
        if problems:
            raise ValidationError.from_exception_data("components", problems)
        return components

    @field_validator("verification")
    @classmethod
    def _verification(cls, verification: Verification, info: ValidationInfo) -> Verification:
        components: dict[str, Component] | None = info.data.get("components")
        backups: Backups | None = info.data.get("backups")
        if components is None or backups is None:
            return verification
        turns, full = len(components) + 2, backups.full
        _refuse_all(
            _unless(
                _each_comes_round(turns, full),
                (),
                f"takes {turns} components in turn, one a day: longer than a full backup is kept ({full.retention}).",
                "Keep full backups longer, make them daily, or join components: each is restored within it (R4.5).",
            )
        )
        return verification

    @field_validator("keys")
    @classmethod
    def _keys(cls, keys: Keys, info: ValidationInfo) -> Keys:
        compliance: Compliance | None = info.data.get("compliance")
        _refuse_all(
            _unless(
                compliance is None or not keys.public_keys_kept.always_shorter_than(compliance.longest),
                "public_keys_kept",
                f"is {keys.public_keys_kept}, so the oldest archives could not be verified to their end.",
                "Keep them as long as the longest retention class, or longer.",
            ),
            _unless(
                keys.handover.always_shorter_than(keys.rotation),
                "handover",
                f"is {keys.handover}, so the next rotation would be due before the last one was over.",
                "Make it days: as long as a new keyring file needs to reach every worker.",
            ),
            _unless(
                not keys.handover.always_shorter_than(Period(1, "days")),
                "handover",
                f"is {keys.handover}: a run that began before could still write with the old keyring.",
                "Give it a day at least, which no run outlasts.",
            ),
        )
        return keys


# --- how a section refuses -------------------------------------------------------------------------------------------


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


Misfit = tuple[Place, PydanticCustomError]


def _each_comes_round(turns: int, full: BackupType) -> bool:
    """Whether each of so many turns, one a calendar day, comes again before a backup that had it before is gone."""
    begin, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
    last: dict[int, datetime] = {}
    for number in range((end - begin).days):
        day = begin + timedelta(days=number)
        turn = day.toordinal() % turns
        if runs_on(full.schedule, day):
            if turn in last and full.retention.after(last[turn]) < day:
                return False
            last[turn] = day
    return len(last) == turns


def _days_of(backup_type: BackupType) -> int:
    """How many days its schedule comes round on, while one is kept."""
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    days = (backup_type.retention.after(begin) - begin).days
    return sum(runs_on(backup_type.schedule, begin + timedelta(days=number)) for number in range(days + 1))


def _unknown_class(name: str, retention: Mapping[str, Period] | None) -> PydanticCustomError | None:
    if retention is None or name in retention:
        return None
    return refusal(f"is {name!r}, which is no retention class.", f"Use one of {', '.join(retention)} (R8.1).")


def _misfits(component: Component, compliance: Compliance | None) -> Iterator[Misfit]:
    """What is wrong with one component beyond its types."""
    if problem := _unknown_class(component.retention_class, compliance.retention if compliance else None):
        yield ("retention_class",), problem
    if component.name.startswith(UNCLASSIFIED):
        yield (), refusal("has a reserved name.", f"Choose one that does not begin with {UNCLASSIFIED!r}.")
    own, needed = _LISTS[component.source]
    if needed and not getattr(component, own):
        yield (own,), refusal("is empty, so nothing would be backed up.", f"List what the component has as {own}.")
    for name, _ in _LISTS.values():
        if name != own and getattr(component, name):
            yield (name,), refusal(f"is nothing that {component.source} has.", f"List {own} instead, or change source.")


def _claimed_twice(components: Iterable[Component]) -> Iterator[Misfit]:
    """Tables and files that two components name alike, and prefixes of which one lies in the other."""
    seen: list[tuple[str, str, str]] = []
    for component in components:
        for kind, _ in _LISTS.values():
            for index, claim in enumerate(getattr(component, kind)):
                for owner, other_kind, other in seen:
                    inside = kind == "prefixes" and (claim.startswith(other) or other.startswith(claim))
                    if kind == other_kind and (claim == other or inside):
                        yield (
                            (component.name, kind, index),
                            refusal(
                                f"is {claim!r}, which {owner} claims as {other!r}.", "Leave it to one component (R2)."
                            ),
                        )
                seen.append((component.name, kind, claim))


def _unless(holds: bool, place: str | int | Place, what: str, mend: str) -> Misfit | None:
    """Nothing when the condition holds, otherwise what is wrong at this place below the section."""
    return None if holds else (place if isinstance(place, tuple) else (place,), refusal(what, mend))


def _refuse_all(*misfits: Misfit | Iterable[Misfit | None] | None) -> None:
    """Raise all of them as one `ValidationError`, each with its place; pydantic puts the section's before it."""
    flat: list[Misfit] = []
    for misfit in misfits:
        if isinstance(misfit, tuple):
            flat.append(misfit)
        elif misfit is not None:
            flat.extend(each for each in misfit if each is not None)
    if flat:
        raise ValidationError.from_exception_data("policy", list(_located(flat)))


def _located(misfits: Iterable[Misfit], *above: str) -> Iterator[InitErrorDetails]:
    for place, problem in misfits:
        yield InitErrorDetails(type=problem, loc=(*above, *place), input=None)


def _relocated(error: ValidationError, *above: str) -> Iterator[InitErrorDetails]:
    """The errors of a section checked by hand, moved to where it stands."""
    for each in error.errors(include_url=False):
        problem = PydanticCustomError(each["type"], each["msg"], each.get("ctx"))
        yield InitErrorDetails(type=problem, loc=(*above, *each["loc"]), input=each["input"])
