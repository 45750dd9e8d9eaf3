"""Each validation can fail: what came back is broken in one way after another, and told by name (R5.2)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database, restore_part
from include.recovery.objects import return_objects
from include.recovery.opened import OpenedBackup
from include.recovery.validation.application import check_application_state
from include.recovery.validation.consistency import check_data_consistency
from include.recovery.validation.kept import keep, newest_page, validations
from include.recovery.validation.recovered import Expected, Recovered
from include.recovery.validation.validation import NotValid, Validation
from include.repository.catalog import Catalog
from include.repository.contents import INVENTORY
from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server
from include.sources.postgres.constraints import list_constraints
from include.sources.postgres.inventory import Inventory
from include.sources.postgres.login import DatabaseLogin
from include.sources.postgres.relations import list_relations

POLICY = load_policy()
PREFIX = "recovered/"


@dataclass(frozen=True)
class Back:
    """What came back, as a superuser brought it, and as one who may only create databases."""

    recovered: Recovered
    copied: Recovered
    bucket: Bucket
    checkout: Path

    @property
    def database(self) -> DatabaseLogin:
        assert self.recovered.database is not None
        return self.recovered.database


@pytest.fixture(scope="module")
def back(
    installation: Installation, catalog: Catalog, manifest: Manifest, s3_primary: S3Server, sandbox_directory: Path
) -> Iterator[Back]:
    scratch = sandbox_directory / "validation-scratch"
    scratch.mkdir()
    name = f"validated_{secrets.token_hex(4)}"
    bucket = Bucket(
        s3_primary.session(),
        s3_primary.create_bucket(f"validated-{secrets.token_hex(4)}"),
        region=s3_primary.region,
        endpoint_url=s3_primary.endpoint_url,
    )
    with Progress("restore", scratch=scratch) as progress:
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        server, checkout = installation.postgres.superuser, scratch / "checkout"
        restore_database(opened, server=server, name=name, scratch=scratch)
        part = restore_part(
            opened,
            server=installation.scratch,
            name=f"{name}_part",
            scratch=scratch,
            components=opened.database_components(),
        )
        written = return_objects(opened, bucket, under=PREFIX).written
        commit = restore_configuration(opened, checkout)
        inventory = Inventory.from_json(json.loads(b"".join(opened.read(INVENTORY))))
    with installation.synapse.database.connect(application_name="test") as session:
        constraints = list_constraints(session, list_relations(session).all)
    expected = Expected(
        manifest.consistency_point.time, inventory, constraints=constraints, objects=written, commit=commit
    )
    places: dict[str, Any] = {"bucket": bucket, "prefix": PREFIX, "configuration": checkout}
    yield Back(
        Recovered(expected, server.with_database(name), **places),
        Recovered(
            replace(expected, left_out=part.left_out), installation.scratch.with_database(f"{name}_part"), **places
        ),
        bucket,
        checkout,
    )
    with server.connect(application_name="test", autocommit=True) as session:
        session.execute(f'DROP DATABASE "{name}"')
        session.execute(f'DROP DATABASE "{name}_part"')


@contextmanager
def broken(login: DatabaseLogin, breaking: str, mending: str) -> Iterator[None]:
    """Within the block the database is not what it was; afterwards it is, to the row."""
    with login.connect(application_name="test", autocommit=True) as session:
        session.execute(breaking.encode())
        try:
            yield
        finally:
            session.execute(mending.encode())


def failures(validation: Validation) -> set[tuple[str, str]]:
    return {(check.name, check.subject) for check in validation.failed}


def data(back: Back, **changes: Any) -> Validation:
    return check_data_consistency(replace(back.recovered, **changes), POLICY)


def state(back: Back, policy: Policy = POLICY) -> Validation:
    return check_application_state(back.recovered, policy)


@pytest.mark.requirement("R5.2")
def test_what_came_back_is_all_there_and_sound(back: Back) -> None:
    for recovered in (back.recovered, back.copied):
        for check in (check_data_consistency, check_application_state):
            validation = check(recovered, POLICY)
            assert list(map(str, validation.failed)) == []
            validation.require()
    names = {check.name for check in data(back).checks}
    assert names >= {
        "rows",
        "content",
        "rows twice in a unique key",
        "rows without a value of the primary key",
        "orphans of a foreign key",
        "last number given out",
        "sequence's position",
        "large objects",
        "soundness",
        "constraint",
    }


@pytest.mark.requirement("R5.2")
def test_of_a_part_only_that_is_looked_at(
    back: Back, catalog: Catalog, manifest: Manifest, installation: Installation, sandbox_directory: Path
) -> None:
    name = f"validated_{secrets.token_hex(4)}"
    with Progress("restore", scratch=sandbox_directory) as progress:
        opened = OpenedBackup(catalog, manifest, policy=POLICY.pipeline, progress=progress)
        part = restore_part(
            opened, server=installation.scratch, name=name, scratch=sandbox_directory, components=["billing"]
        )
    tables = ("public.invoices", "public.subscriptions")
    expected = replace(back.recovered.expected, tables=tables, left_out=part.left_out, objects=None, commit=None)
    login = installation.scratch.with_database(name)
    recovered = Recovered(expected, login, whole=False)
    try:
        validation = check_data_consistency(recovered, POLICY)
        assert list(map(str, validation.failed)) == []
        assert {check.subject for check in validation.checks if check.name == "rows"} == set(tables)
        [invariants] = {check.name for check in check_application_state(recovered, POLICY).checks}
        assert invariants == "rows against the invariant"
        with broken(login, "DROP TABLE invoices", "SELECT"):
            validation = check_data_consistency(recovered, POLICY)
        assert ("rows", "public.invoices") in failures(validation)
        assert [check.found for check in validation.failed if check.subject == "public.invoices"] == ["missing"]
        assert check_application_state(recovered, POLICY).checks == ()
        whole = replace(recovered, expected=replace(expected, tables=()))
        assert failures(check_application_state(whole, POLICY)) >= {("rows against the invariant", "negative_invoice")}
    finally:
        with installation.scratch.connect(application_name="test", autocommit=True) as session:
            session.execute(f'DROP DATABASE "{name}"'.encode())


WORDS = ("as recorded", "something else")
"""Of a digest nothing else is told."""
BREAKS = {
    "a dropped row": (
        "CREATE TABLE pg_temp.kept AS SELECT * FROM feature_flags LIMIT 1;"
        "DELETE FROM feature_flags WHERE name IN (SELECT name FROM kept)",
        "INSERT INTO feature_flags SELECT * FROM kept; DROP TABLE kept",
        {("rows", "public.feature_flags"), ("content", "public.feature_flags")},
    ),
    "a changed value": (
        "UPDATE invoices SET amount = amount + 0.01 WHERE id = 1",
        "UPDATE invoices SET amount = amount - 0.01 WHERE id = 1",
        {("content", "public.invoices")},
    ),
    "a duplicate key": (
        "ALTER TABLE feature_flags DROP CONSTRAINT feature_flags_pkey;"
        "INSERT INTO feature_flags SELECT * FROM feature_flags LIMIT 1",
        "DELETE FROM feature_flags WHERE ctid IN (SELECT max(ctid) FROM feature_flags GROUP BY name"
        " HAVING count(*) > 1); ALTER TABLE feature_flags ADD PRIMARY KEY (name)",
        {
            ("rows", "public.feature_flags"),
            ("content", "public.feature_flags"),
            ("constraint", "public.feature_flags: feature_flags_pkey PRIMARY KEY (name)"),
            ("constraint", "all constraints"),
        },
    ),
    "a duplicate key that its index does not know": (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET seq_page_cost = 1e6', current_database()); END $$;"
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'feature_flags_pkey'::regclass;"
        "INSERT INTO feature_flags SELECT * FROM feature_flags LIMIT 1;"
        "UPDATE pg_index SET indisready = true WHERE indexrelid = 'feature_flags_pkey'::regclass",
        "SET enable_indexscan = off; SET enable_bitmapscan = off; DELETE FROM feature_flags WHERE ctid IN"
        " (SELECT max(ctid) FROM feature_flags GROUP BY name HAVING count(*) > 1); REINDEX TABLE feature_flags;"
        " DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET seq_page_cost', current_database()); END $$",
        {
            ("rows", "public.feature_flags"),
            ("content", "public.feature_flags"),
            ("rows twice in a unique key", "public.feature_flags: feature_flags_pkey"),
            ("soundness", "public.feature_flags_pkey"),
            ("soundness", "B-trees and tables, by pg_amcheck"),
        },
    ),
    "an orphan": (
        "SET session_replication_role = replica; UPDATE user_settings SET user_id = 999999 WHERE user_id = 1;"
        "SET session_replication_role = origin",
        "SET session_replication_role = replica; UPDATE user_settings SET user_id = 1 WHERE user_id = 999999;"
        "SET session_replication_role = origin",
        {
            ("content", "public.user_settings"),
            ("orphans of a foreign key", "public.user_settings: user_settings_user_id_fkey"),
        },
    ),
    "a sequence set back": (
        "CREATE TABLE pg_temp.stood AS SELECT last_value FROM invoices_id_seq; SELECT setval('invoices_id_seq', 1)",
        "SELECT setval('invoices_id_seq', last_value) FROM stood; DROP TABLE stood",
        {("last number given out", "public.invoices_id_seq"), ("sequence's position", "public.invoices_id_seq")},
    ),
    "a sequence that is gone": (
        "ALTER SEQUENCE invoices_id_seq RENAME TO another_seq",
        "ALTER SEQUENCE another_seq RENAME TO invoices_id_seq",
        {("sequences", "public.invoices_id_seq"), ("sequences", "all sequences")},
    ),
    "a constraint that nobody looked into": (
        "UPDATE pg_constraint SET convalidated = false WHERE conname = 'chats_user_id_fkey'",
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'chats_user_id_fkey'",
        {
            ("constraint", "public.chats: chats_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id)"),
            ("constraint", "all constraints"),
        },
    ),
    "an index that was not finished": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'sessions_by_user'::regclass",
        "UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'sessions_by_user'::regclass",
        {("validity of an index", "public.sessions_by_user"), ("validity of an index", "all indexes")},
    ),
    "a table too many": (
        "CREATE TABLE surplus (id int)",
        "DROP TABLE surplus",
        {("rows", "public.surplus")},
    ),
    "a large object lost": (
        "CREATE TABLE pg_temp.lost AS SELECT lo_get(loid) AS content, loid FROM (SELECT max(oid) AS loid FROM"
        " pg_largeobject_metadata) AS l; SELECT lo_unlink(loid) FROM lost",
        "SELECT lo_from_bytea(loid, content) FROM lost; DO $$ BEGIN EXECUTE format('ALTER LARGE OBJECT %s OWNER TO"
        " synapse_app', (SELECT loid FROM lost)); END $$; DROP TABLE lost",
        {
            ("large objects", "their number"),
            ("large objects", "their bytes"),
            ("large objects", "their content and owners"),
        },
    ),
}


@pytest.mark.requirement("R5.2")
@pytest.mark.parametrize("name", BREAKS)
def test_data_that_is_not_as_it_was_is_told_by_name(back: Back, name: str) -> None:
    breaking, mending, expected = BREAKS[name]
    with broken(back.database, breaking, mending):
        validation = data(back)
    assert failures(validation) == expected
    assert all((check.expected, check.found) == WORDS for check in validation.failed if check.name == "content")
    subject = next(iter(sorted(expected)))[1]
    with pytest.raises(NotValid) as told:
        validation.require()
    assert subject in told.value.what


@pytest.mark.requirement("R5.2")
def test_an_index_that_lacks_a_row_is_found_without_being_a_superuser(back: Back, installation: Installation) -> None:
    copied = back.copied
    assert copied.database is not None
    superuser = installation.postgres.superuser.with_database(copied.database.dbname)
    breaking = (
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'sessions_by_user'::regclass;"
        "UPDATE sessions SET user_id = user_id + 1, user_agent = user_agent || 'x' WHERE id = 1;"
        "UPDATE pg_index SET indisready = true WHERE indexrelid = 'sessions_by_user'::regclass"
    )
    mending = (
        "UPDATE sessions SET user_id = user_id - 1, user_agent = left(user_agent, -1) WHERE id = 1;"
        "REINDEX TABLE sessions"
    )
    with broken(superuser, breaking, mending):
        found = failures(check_data_consistency(copied, POLICY))
    assert found == {
        ("content", "public.sessions"),
        ("soundness", "public.sessions_by_user"),
        ("soundness", "B-trees, each scanned through"),
    }


@pytest.mark.requirement("R5.2")
def test_an_object_that_is_missing_or_cut_is_told_by_its_key(back: Back) -> None:
    attached = [key for key in back.bucket.keys(f"{PREFIX}uploads/") if key.endswith(".json")]
    gone, cut = attached[:2]
    kept = {key: back.bucket.read(key) for key in (gone, cut)}
    back.bucket.delete(gone)
    back.bucket.put(cut, kept[cut][:-1])
    try:
        validation = state(back)
    finally:
        for key, body in kept.items():
            back.bucket.put(key, body)
    together = f"all that the database names ({POLICY.sources.objects.references[0]})"
    assert failures(validation) == {
        ("number", "objects"),
        ("object", gone.removeprefix(PREFIX)),
        ("object", cut.removeprefix(PREFIX)),
        ("object", together),
    }
    told = {check.subject: check for check in validation.failed}
    assert told[gone.removeprefix(PREFIX)].found == "missing"
    assert told[cut.removeprefix(PREFIX)].found == f"{len(kept[cut]) - 1:,} bytes"
    lost = replace(back.recovered, expected=replace(back.recovered.expected, unheld=(gone.removeprefix(PREFIX),)))
    back.bucket.delete(gone)
    try:
        validation = check_application_state(lost, POLICY)
    finally:
        back.bucket.put(gone, kept[gone])
    assert failures(validation) == {("number", "objects")}
    assert [check.found for check in validation.checks if check.name == "lost object"] == ["1"]


@pytest.mark.requirement("R5.2")
def test_another_schema_commit_or_checkout_is_told(back: Back) -> None:
    version = "UPDATE system_settings SET value = to_jsonb({}) WHERE key = 'schema.version'"
    with broken(back.database, version.format(6), version.format(7)):
        validation = state(back)
    [check] = validation.failed
    assert (check.name, check.found, check.expected) == ("schema version", "6", "7")
    file = back.checkout / "settings" / "limits.yaml"
    before = file.read_text()
    file.write_text(f"{before}more: 1\n")
    try:
        [check] = state(back).failed
    finally:
        file.write_text(before)
    assert (check.name, check.found) == ("state", "1 changed: settings/limits.yaml")
    other = replace(back.recovered, expected=replace(back.recovered.expected, commit="0" * 40))
    assert failures(check_application_state(other, POLICY)) == {("commit", "the configuration")}


@pytest.mark.requirement("R5.2")
def test_an_invariant_is_a_query_that_finds_nothing(back: Back) -> None:
    with broken(
        back.database,
        "UPDATE invoices SET amount = -amount WHERE id < 3 AND amount > 0; INSERT INTO invoices (id, subscription_id,"
        " number, issued_on, amount, currency) VALUES (0, 1, 'none', '2026-01-01', -1, 'EUR')",
        "DELETE FROM invoices WHERE id = 0; UPDATE invoices SET amount = -amount WHERE amount < 0",
    ):
        validation = state(back)
    assert failures(validation) == {("rows against the invariant", "negative_invoice")}
    wrong = POLICY.recovery.expectations.model_copy(update={"invariants": {"broken": "SELECT FROM nowhere"}})
    policy = POLICY.model_copy(update={"recovery": POLICY.recovery.model_copy(update={"expectations": wrong})})
    [check] = state(back, policy).failed
    assert (check.subject, "nowhere" in check.found) == ("broken", True)


@pytest.mark.requirement("R5.2")
def test_a_validation_is_kept_as_a_page_without_a_value_of_any_row(
    back: Back, bucket: str, s3_primary: S3Server
) -> None:
    into = Bucket(s3_primary.session(), bucket, region=s3_primary.region, endpoint_url=s3_primary.endpoint_url)
    with broken(
        back.database,
        "CREATE TABLE pg_temp.was AS SELECT display_name FROM users WHERE id = 1;"
        "UPDATE users SET display_name = 'Secret Name' WHERE id = 1;"
        'CREATE TABLE "<b>Odd.Table""name%" (id int)',
        "UPDATE users SET display_name = was.display_name FROM was WHERE id = 1; DROP TABLE was;"
        'DROP TABLE "<b>Odd.Table""name%"',
    ):
        validation = data(back)
    assert ("content", "public.users") in failures(validation)
    place = {"dag": "a_dag", "run": "manual__2026-11-29T00:00:00+00:00", "task": "check_data_consistency"}
    key = keep(into, validation, **place, about="a test")
    assert key.startswith("reports/validations/a_dag/manual__2026-11-29T00%3A00%3A00%2B00%3A00/check_data_consistency/")
    page = newest_page(into, **place)
    assert page is not None
    text = page.decode()
    assert "&lt;b&gt;Odd.Table" in text
    assert "Secret Name" not in text
    assert all(digest.digest not in text for digest in back.recovered.expected.inventory.tables.values() if digest.rows)  # type: ignore[union-attr]
    assert validations(into, dag=place["dag"], run=place["run"]) == [validation]
    assert newest_page(into, dag="a_dag", run="another", task="x") is None
