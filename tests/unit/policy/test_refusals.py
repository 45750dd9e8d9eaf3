"""A wrong policy is refused: every reason at once, each with its file, line, place and mend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError

from include.errors import BackupError
from include.policy import PolicyError, load_policy
from include.policy.loader import DEFAULT

Edit = Callable[..., Path]
SHIPPED = DEFAULT.read_text(encoding="utf-8")


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """Write the shipped policy with some of its text replaced; each replaced text must be there once."""

    def edit(*replacements: tuple[str, str]) -> Path:
        text = SHIPPED
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        file = tmp_path / "edited.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return edit


def _refused(file: Path) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        load_policy(file)
    return caught.value


def _line(words: str, text: str) -> int:
    """The line of the text, from 1, on which these words begin; they are in it once."""
    assert text.count(words) == 1, words
    return text[: text.index(words)].count("\n") + 1


class Wrong(NamedTuple):
    """One edit of the shipped policy, the place that is refused for it, and words of the refusal.

    The refusal points to the line of the edit, or to the line on which the text `at` stands.
    """

    old: str
    new: str
    where: str
    words: str
    at: str = ""


WRONG = {
    "cron": Wrong('"0 0 * * 0"', '"0 0 * *"', "backups.snapshot.schedule", "has 5 fields, this has 4"),
    "cron value": Wrong('"0 0 * * 0"', '"0 99 * * 0"', "backups.snapshot.schedule", "has the hour '99'"),
    "period": Wrong("retention: 12 weeks", "retention: 12 moons", "backups.snapshot.retention", "unit 'moons'"),
    "not compressed": Wrong(
        "retention: 12 weeks\n    compressed: true",
        "retention: 12 weeks\n    compressed: false",
        "backups.snapshot.compressed",
        "Use true.",
        at="compressed: false",
    ),
    "duration": Wrong("stall_limit: 5 min", "stall_limit: 5", "pipeline.stall_limit", 'Write it as in "5 min".'),
    "size": Wrong("segment_bytes: 64 MB", "segment_bytes: 256 MO", "pipeline.segment_bytes", "unit 'MO'"),
    "share": Wrong("used: 90 %", "used: 90", "monitoring.critical.storage_full.used", "is 90: that is no share."),
    "whole number": Wrong("tries: 5", "tries: some", "barrier.tries", "Write a whole number."),
    "number": Wrong("times_usual: 1.5", "times_usual: no", "monitoring.warnings.slow_backup.times_usual", "a number"),
    "below one": Wrong("times_usual: 1.5", "times_usual: 1", "monitoring.warnings.slow_backup.times_usual", "than 1"),
    "yes or no": Wrong("archived: false", "archived: perhaps", "components.api_keys.archived", "Write true or false."),
    "text": Wrong('tls_minimum: "1.3"', "tls_minimum: 1.3", "security.tls_minimum", "Use '1.3'."),
    "text elsewhere": Wrong("region: us-east-1", "region: 1", "storage.replica.region", "in quotes if need be"),
    "empty text": Wrong("region: us-east-1", 'region: ""', "storage.replica.region", "is empty."),
    "older TLS": Wrong('tls_minimum: "1.3"', 'tls_minimum: "1.2"', "security.tls_minimum", "Use '1.3'."),
    "no list": Wrong(
        "tables: [public.system_settings, public.feature_flags]",
        "tables: public.system_settings",
        "components.system_config.tables",
        "is no list.",
    ),
    "no table": Wrong("  rto: 4 hours", "  rto: {of: 4 hours}", "recovery.rto", "a whole number and a unit"),
    "no tries": Wrong("tries: 5", "tries: 0", "barrier.tries", "It should be greater than 0."),
    "level": Wrong("compression_level: 2", "compression_level: 20", "pipeline.compression_level", "equal to 19"),
    "level above all": Wrong(
        "compression_level: 2",
        "compression_level: 12",
        "pipeline.compression_highest",
        "level 12 outside of 1 to 9",
        at="compression_highest: 9",
    ),
    "level below all": Wrong(
        "compression_lowest: 1",
        "compression_lowest: 3",
        "pipeline.compression_highest",
        "level 2 outside of 3 to 9",
        at="compression_highest: 9",
    ),
    "more kept than made": Wrong(
        "full: 3 ",
        "full: 32 ",
        "storage.retention.minimum_kept.full",
        "is 32, more than are made in the 30 days that each is kept",
    ),
    "a lease for nobody": Wrong("lease: 30 min", "lease: 20 s", "storage.retention.lease", "three signs of life"),
    "no network": Wrong("- 10.0.0.0/8", "- 10.0.0.1/8", "security.networks_allowed[2]", "has host bits set"),
    "everybody": Wrong("- 10.0.0.0/8", "- 0.0.0.0/0", "security.networks_allowed[2]", "is everybody"),
    "no address": Wrong(
        "[security@synapse.example]",
        "[security]",
        "compliance.reports.recipients.security_team[0]",
        "an e-mail address",
    ),
    "nobody told": Wrong("[security@synapse.example]", "[]", "compliance.reports.recipients.security_team", "empty"),
    "table without schema": Wrong(
        "- public.chats", "- chats", "components.chat_history.tables[0]", "Write schema.table"
    ),
    "prefix without slash": Wrong("[media/]", "[media]", "components.media_files.prefixes[0]", "ends in a slash"),
    "files outside": Wrong("[secrets/*]", "[../secrets/*]", "components.api_keys.files[0]", "below the checkout"),
    "absolute files": Wrong("[secrets/*]", "[/etc/*]", "components.api_keys.files[0]", "below the checkout"),
    "bucket": Wrong("bucket: synapse-backups-dr", "bucket: Synapse", "storage.replica.bucket", "a bucket's name"),
    "component's name": Wrong("  media_files:", "  Media-Files:", "components.Media-Files.name", "Write a name of"),
    "reserved name": Wrong(
        "  media_files:", "  unclassified_media:", "components.unclassified_media", "a reserved name"
    ),
    "class's name": Wrong("    financial: 7 years", "    Financial: 7 years", "compliance.retention.Financial", "a-z"),
    "two statements": Wrong(
        "- SELECT storage_key, bytes FROM public.attachments",
        "- DROP TABLE attachments",
        "sources.objects.references[0]",
        "one SELECT",
    ),
    "an invariant that is no query": Wrong(
        "SELECT FROM public.invoices WHERE amount < 0",
        "amount >= 0",
        "recovery.expectations.invariants.negative_invoice",
        "one SELECT",
    ),
    "audit record": Wrong("[who, what, when, where]", "[who, what, when]", "compliance.audit.records", "lacks where."),
    # Unknown and missing keys.
    "unknown key": Wrong("  tries: 5", "  trys: 5", "barrier.trys", "Did you mean tries?"),
    "unknown key like none": Wrong(
        "      objects: 1", "      zzz: 1", "monitoring.critical.corruption_detected.zzz", "keys here are objects."
    ),
    "unknown component key": Wrong(
        "archived: false", "archive: false", "components.api_keys.archive", "mean archived?"
    ),
    "missing key": Wrong("  tries: 5", "", "barrier.tries", "is missing. Add it.", at="barrier:  "),
    "missing section": Wrong("barrier:  ", "barriers:  ", "barrier", "is missing.", at="# The backup policy"),
    # Contradictions.
    "unknown class": Wrong(
        "retention_class: financial",
        "retention_class: finance",
        "components.billing.retention_class",
        "Use one of financial, personal, operational",
    ),
    "unknown class of the rest": Wrong(
        "unclassified_as: personal",
        "unclassified_as: private",
        "compliance.unclassified_as",
        "is 'private', which is no retention class.",
    ),
    "component without class": Wrong(
        "    retention_class: financial\n", "", "components.billing.retention_class", "is missing.", at="  billing:"
    ),
    "cold after expiry": Wrong(
        "transition_after: 90 days",
        "transition_after: 2000 days",
        "storage.cold.transition_after",
        "the expiry of personal (5 years), operational (1 year).",
    ),
    "cold at expiry": Wrong(
        "transition_after: 90 days",
        "transition_after: 365 days",
        "storage.cold.transition_after",
        "at or after the expiry of operational (1 year).",
    ),
    "cold after months": Wrong(
        "transition_after: 90 days",
        "transition_after: 3 months",
        "storage.cold.transition_after",
        "is 3 months, and stores count whole days.",
    ),
    "a tier without a price": Wrong(
        "      Bulk: {within: 12 hours, usd_per_gib: 0, usd_per_1000_objects: 0}\n",
        "",
        "storage.cold.retrievals",
        "lacks Bulk.",
        at="retrievals:",
    ),
    "uploads aborted before the reaper": Wrong(
        "uploads_aborted_after: 7 days",
        "uploads_aborted_after: 2 days",
        "storage.lifecycle.uploads_aborted_after",
        "is 2 days, within attempts_reaped_after (48 hours).",
    ),
    "noncurrent versions for hours": Wrong(
        "noncurrent_expire_after: 30 days",
        "noncurrent_expire_after: 30 hours",
        "storage.lifecycle.noncurrent_expire_after",
        "is 30 hours, and stores count whole days.",
    ),
    "a lock of no kind": Wrong(
        'object_lock: "off"',
        'object_lock: "on"',
        "storage.object_lock",
        "'off', 'governance' or 'compliance'",
    ),
    "cold kept otherwise": Wrong(
        "kept: 7 years                   #",
        "kept: 6 years                   #",
        "storage.cold.kept",
        "class is kept 7 years",
    ),
    "same table twice": Wrong(
        "tables: [public.system_settings,",
        "tables: [public.users,",
        "components.system_config.tables[0]",
        "which user_data claims as 'public.users'",
    ),
    "prefix in prefix": Wrong(
        "[generated/]",
        "[uploads/generated/]",
        "components.generated_content.prefixes[0]",
        "which user_uploads claims as 'uploads/'",
    ),
    "prefix around prefix": Wrong(
        "[uploads/]",
        "[media/uploads/]",
        "components.media_files.prefixes[0]",
        "which user_uploads claims as 'media/uploads/'",
        at="[media/]",
    ),
    "same files twice": Wrong("[secrets/*]", "[environment/*.env]", "components.api_keys.files[0]", "claims as"),
    "nothing in it": Wrong("[media/]", "[]", "components.media_files.prefixes", "nothing would be backed up"),
    "not the source's": Wrong(
        "    prefixes: [media/]",
        "    prefixes: [media/]\n    tables: [public.media]",
        "components.media_files.tables",
        "is nothing that objects has.",
        at="tables: [public.media]",
    ),
    "deadlock timeout": Wrong(
        "deadlock_timeout: 20 ms",
        "deadlock_timeout: 1 s",
        "barrier.deadlock_timeout",
        "is not below lock_timeout",
        at="deadlock_timeout: 1 s",
    ),
    "statement timeout": Wrong(
        "statement_timeout: 5 s", "statement_timeout: 999 ms", "barrier.statement_timeout", "is below lock_timeout"
    ),
    "progress after stall": Wrong(
        "progress_every: 5 s", "progress_every: 5 min", "pipeline.progress_every", "is not below stall_limit"
    ),
    "segment too long": Wrong("segment_bytes: 64 MB", "segment_bytes: 256 MiB", "pipeline.segment_bytes", "to 256 MB"),
    "segment too short": Wrong("segment_bytes: 64 MB", "segment_bytes: 65535", "pipeline.segment_bytes", "Use 64 KiB"),
    "part too short": Wrong("part_bytes: 8 MiB", "part_bytes: 5 MB", "pipeline.part_bytes", "Use 5 MiB"),
    "part too long": Wrong("part_bytes: 8 MiB", "part_bytes: 257 MB", "pipeline.part_bytes", "to 256 MB"),
    "late replica": Wrong("within: 15 min", "within: 45 min", "storage.replica.within", "below recovery.rpo_alert"),
    "one region": Wrong("region: us-east-1", "region: eu-west-1", "storage.replica.region", "outlive"),
    "one bucket": Wrong(
        "bucket: synapse-backups-dr",
        "bucket: synapse-backups",
        "storage.replica.bucket",
        "is 'synapse-backups', as the primary's.",
    ),
    "late alert": Wrong("rpo_alert: 45 min", "rpo_alert: 60 min", "recovery.rpo_alert", "is not before the RPO."),
    "files too good": Wrong("rpo_files: 90 min", "rpo_files: 59 min", "recovery.rpo_files", "is below the RPO."),
    "no application": Wrong(
        "command: [python, -m, include.sandbox.service]", "command: []", "recovery.service.command", "is empty."
    ),
    "not only one secret": Wrong(
        "{password: secrets/probe.key}",
        "{password: secrets/*.key}",
        "recovery.service.files.password",
        "is 'secrets/*.key', which is no single file.",
    ),
    "secret outside": Wrong(
        "{password: secrets/probe.key}", "{password: /etc/shadow}", "recovery.service.files.password", "the checkout"
    ),
    "path without a slash": Wrong(
        "ask: GET /chats\n",
        "ask: GET chats\n",
        "recovery.service.requests.list of chats.ask",
        "as in GET /health",
        at="ask: GET chats",
    ),
    "health that is no plain GET": Wrong(
        "ask: GET /health",
        "ask: POST /health",
        "recovery.service.requests.health endpoint.ask",
        "Begin with a plain GET.",
    ),
    "a name that nothing gives": Wrong(
        "GET /uploads/${attachment}",
        "GET /uploads/${file}",
        "recovery.service.requests.upload.ask",
        "names ${file}, which neither files nor an earlier answer gives.",
    ),
    "a name that comes too late": Wrong(
        "ask: GET /health",
        "ask: GET /health/${token}",
        "recovery.service.requests.health endpoint.ask",
        "nor an earlier answer",
    ),
    "a dollar that names nothing": Wrong(
        "GET /uploads/${attachment}", "GET /uploads/$", "recovery.service.requests.upload.ask", "Write ${name}, or $$."
    ),
    "no status": Wrong(
        "        status: 201\n        keep: {message: id}",
        "        status: 99\n        keep: {message: id}",
        "recovery.service.requests.new message.status",
        "greater than or equal to 200",
        at="status: 99",
    ),
    "a GET that writes": Wrong(
        "ask: GET /uploads/${attachment}",
        "write: true\n        ask: GET /uploads/${attachment}",
        "recovery.service.requests.upload.write",
        "changes nothing",
    ),
    "unknown key of a request": Wrong(
        "holds: [messages.0.body]", "hold: [messages.0.body]", "recovery.service.requests.chat.hold", "mean holds?"
    ),
    "shipped too late": Wrong(
        "shipped_within: 1 min",
        "shipped_within: 45 min",
        "backups.incremental.shipped_within",
        "the RPO could not be kept",
    ),
    "secret in the policy": Wrong(
        "status_update: [operations@synapse.example]",
        "status_update: ['slack://TokenA/TokenB']",
        "notifications.status_update[0]",
        "is a URL, which holds a secret. Put it into an Airflow connection",
    ),
    "recipient of no kind": Wrong(
        "status_update: [operations@synapse.example]",
        "status_update: ['the pager']",
        "notifications.status_update[0]",
        "Write an e-mail address, as in team@example.org, or a channel's Airflow connection",
    ),
    "kept shorter than the samples' rotation": Wrong(
        "retention: 30 days", "retention: 11 days", "verification", "takes 12 components in turn", at="verification:  "
    ),
    "too seldom for the samples' rotation": Wrong(
        '"0 0 * * *"',
        '"0 0 * * 0"',
        "verification",
        "longer than a full backup is kept (30 days)",
        at="verification:  ",
    ),
    "no sample at all": Wrong("sample_objects: 50", "sample_objects: 0", "verification.sample_objects", "greater than"),
    "shrunk to nothing": Wrong("shrunk_to: 50 %", "shrunk_to: 0 %", "verification.shrunk_to", "that is no share"),
    "handover too long": Wrong("handover: 7 days", "handover: 1 years", "keys.handover", "the last one was over"),
    "handover too short": Wrong("handover: 7 days", "handover: 23 hours", "keys.handover", "with the old keyring"),
    "keys forgotten": Wrong(
        "public_keys_kept: 7 years",
        "public_keys_kept: 6 years",
        "keys.public_keys_kept",
        "the oldest archives could not be verified",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_with_its_line_and_mend(name: str, edited: Edit) -> None:
    wrong = WRONG[name]
    file = edited((wrong.old, wrong.new))
    line = _line(wrong.at, file.read_text("utf-8")) if wrong.at else _line(wrong.old.strip("\n"), SHIPPED)
    error = _refused(file)
    found = {problem.where: problem for problem in error.problems}
    assert wrong.where in found, str(error)
    problem = found[wrong.where]
    assert problem.line == line
    assert wrong.words in f"{problem.what} {problem.mend}"
    assert problem.mend.endswith((".", "?"))
    assert f"\n{file}:{line}: {wrong.where}: {problem.what} {problem.mend}" in str(error)


def test_the_shipped_policy_passes_unedited(edited: Edit) -> None:
    assert load_policy(edited()) == load_policy()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("segment_bytes: 64 MB", "segment_bytes: 64 KiB"),
        ("part_bytes: 8 MiB", "part_bytes: 5 MiB"),
        ("part_bytes: 8 MiB", "part_bytes: 256 MB"),
        ("statement_timeout: 5 s", "statement_timeout: 1 s"),
        ("rpo_files: 90 min", "rpo_files: 1 hour"),
        ("rpo_alert: 45 min", "rpo_alert: 3599 s"),
        ("deadlock_timeout: 20 ms", "deadlock_timeout: 999 ms"),
        ("progress_every: 5 s", "progress_every: 299 s"),
        ("shipped_within: 1 min", "shipped_within: 44 min"),
        ("public_keys_kept: 7 years", "public_keys_kept: 8 years"),
        ("transition_after: 90 days", "transition_after: 364 days"),
        ("retention: 30 days", "retention: 12 days"),
    ],
)
def test_what_is_just_allowed_passes(old: str, new: str, edited: Edit) -> None:
    assert load_policy(edited((old, new))) != load_policy()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "The file is empty."),
        ("# only words\n", 1, "The file is empty."),
        ("{}", 1, "The file holds no keys."),
        ("- backups\n", 1, "The file holds no keys."),
        ("keys:\n  a: 1\n\tb: 2\n", 3, "This is not YAML: found character '\\t'"),
        ("keys:\n  - [1, 2\nb: 3\n", 3, "This is not YAML: "),
        ("a: 1\n---\nb: 2\n", 2, "This is not YAML: but found another document."),
        ("a: \0", 1, "This is not YAML: it holds a character that YAML does not allow."),
        ("a: 1\nb: *nowhere\n", 2, "undefined alias"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    [problem] = _refused(file).problems
    assert problem.line == line
    assert words in problem.what


def test_what_is_no_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(b"keys:\n  rotation: \xff\n")
    [problem] = _refused(file).problems
    assert (problem.line, problem.what) == (2, "This is not UTF-8.")


@pytest.mark.parametrize(
    ("text", "line", "where", "words"),
    [
        ("keys:\n  rotation: 1 year\n  rotation: 2 years\n", 3, "keys.rotation", "is here twice, first in line 2."),
        ("keys: {}\nkeys: {}\n", 2, "keys", "is here twice, first in line 1."),
        ("keys: {}\n? [a, b]\n: 1\n", 2, "", "has a key that is not a word."),
        ("keys: &again\n  rotation: *again\n", 1, "keys.rotation", "contains itself."),
        ("keys:\n  rotation: !secret 1\n", 2, "keys.rotation", "has the value '1', which YAML cannot read."),
        ("keys:\n  rotation: 2026-13-45\n", 2, "keys.rotation", "has the value '2026-13-45'"),
        ("keys: 5\n", 1, "keys", "is no table. Its keys are rotation, handover, schedule, public_keys_kept."),
        ("components: 5\n", 1, "components", "is no table of components."),
        ("components: {}\n", 1, "components", "is no table of components."),
        ("components:\n  billing: 5\n", 2, "components.billing", "is no table. Its keys are source, retention_class, "),
        ("compliance:\n  retention: 5\n", 2, "compliance.retention", "is no table. Write it as `key: value` lines."),
        ("compliance:\n  retention: {}\n", 2, "compliance.retention", "is empty. Give at least one."),
    ],
)
def test_yaml_that_is_no_policy(text: str, line: int, where: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    said = [f"{p.what} {p.mend}" for p in _refused(file).problems if (p.line, p.where) == (line, where)]
    assert any(words in each for each in said), said


def test_an_application_that_nobody_lets_write_is_refused(edited: Edit) -> None:
    text = SHIPPED.replace("        write: true\n", "")
    file = edited()
    file.write_text(text, encoding="utf-8")
    (problem,) = _refused(file).problems
    assert (problem.where, problem.what) == ("recovery.service.requests", "has no request that writes.")
    assert problem.line == _line("    requests:", text)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "nowhere.yaml:1: The file cannot be read: No such file" in str(_refused(tmp_path / "nowhere.yaml"))
    assert "The file cannot be read: Is a directory." in str(_refused(tmp_path))


def test_all_problems_come_at_once_in_the_order_of_the_file(edited: Edit) -> None:
    """Wrong types, unknown keys, twice the same key and contradictions, also within one section: none hides another."""
    error = _refused(
        edited(
            ('"0 0 * * 0"', '"61 0 * * 0"'),
            ("retention_class: financial", "retention_class: finance"),
            ("archived: false", "archive: false"),
            ("transition_after: 90 days", "transition_after: 2 years"),
            ("deadlock_timeout: 20 ms", "deadlock_timeout: 2 s"),
            ("tries: 5", "tries: 0\n  tries: 4"),
            ("rpo_alert: 45 min", "rpo_alert: 2 hours"),
            ("  rotation: 1 year", "  rotation: yearly"),
        )
    )
    assert [problem.where for problem in error.problems] == [
        "backups.snapshot.schedule",
        "components.billing.retention_class",
        "components.api_keys.archive",
        "storage.cold.transition_after",
        "barrier.deadlock_timeout",
        "barrier.tries",
        "barrier.tries",
        "recovery.rpo_alert",
        "keys.rotation",
    ]
    assert "refused, with 9 problems" in str(error)


def test_a_refusal_is_an_error_of_the_project(tmp_path: Path) -> None:
    error = _refused(tmp_path / "nowhere.yaml")
    assert isinstance(error, BackupError)
    assert error.file == tmp_path / "nowhere.yaml"
    assert error.what == "The policy is refused, with 1 problem."
    assert "BACKUP_POLICY" in error.mend


def test_the_environment_names_another_policy(edited: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_POLICY", str(edited(("tries: 5", "tries: 7"))))
    assert load_policy().barrier.tries == 7
    assert load_policy(DEFAULT).barrier.tries == 5
    monkeypatch.setenv("BACKUP_POLICY", "")
    assert load_policy().barrier.tries == 5


def test_nothing_changes_a_loaded_policy() -> None:
    policy = load_policy()
    with pytest.raises(ValidationError, match="frozen"):
        policy.barrier.tries = 9  # type: ignore[misc]
    assert policy.barrier.tries == 5


def test_the_policy_loads_without_airflow_boto3_or_pandas(tmp_path: Path) -> None:
    """In a process of its own, where importing any of them fails: the engine knows no Airflow, and is light."""
    root = Path(__file__).parents[3]
    heavy = ("airflow", "boto3", "botocore", "pandas", "great_expectations", "psycopg", "cryptography")
    for name in heavy:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError({name!r})")
    done = subprocess.run(
        [sys.executable, "-c", "from include.policy import load_policy; print(load_policy().recovery.rto)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "4:00:00"), done.stderr


def test_a_refused_secret_is_not_told(edited: Edit) -> None:
    file = edited(("status_update: [operations@synapse.example]", "status_update: ['slack://TokenA/TokenB']"))
    assert "Token" not in str(_refused(file))
