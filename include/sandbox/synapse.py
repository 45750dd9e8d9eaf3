"""The Synapse application: a database, a bucket and a configuration checkout to back up, destroy and compare."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from include.errors import BackupError
from include.sandbox.checkout import make_checkout, read_commit, read_files
from include.sandbox.fingerprint import Fingerprint, Object, read_database
from include.sandbox.lifelike import MIB, Lifelike, Row, StoredObject
from include.sources.postgres.login import DatabaseLogin

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectIdentifierTypeDef

OWNER = "synapse_app"
SCHEMA = Path(__file__).with_name("synapse.sql")
PART_BYTES = 5 * MIB
"""Objects above this are uploaded in parts."""
CONNECTIONS = 4
IDENTITIES = ("users", "sessions", "chats", "messages", "attachments", "subscriptions", "invoices", "audit_notes")
"""Tables whose sequence goes on where the seeded rows end."""


class Synapse:
    """One application: the database `name` on `database`'s server, one bucket, one checkout.

    `database` is a superuser's login into any database; the application's own role is `synapse_app`. The bucket
    exists and is versioned; `configuration` is the path of the checkout, which `seed` makes.
    """

    def __init__(
        self, database: DatabaseLogin, objects: S3Client, bucket: str, configuration: Path, *, name: str = "synapse"
    ) -> None:
        self.server = database
        self.database = database.with_database(name)
        self.objects = objects
        self.bucket = bucket
        self.configuration = configuration

    def seed(self, *, seed: int = 1, scale: float = 1.0) -> DatabaseLogin:
        """Fill all three, the same for the same seed and scale; returns the application's own login.

        Raises `BackupError` when the database or the checkout exists already.
        """
        data = Lifelike(seed, scale)
        make_checkout(self.configuration, data.commits(), data.files())
        application = self._create_database()
        with (
            ThreadPoolExecutor(CONNECTIONS) as pool,
            self.database.connect(application_name="synapse seed") as connection,
        ):
            uploads = {each.key: pool.submit(self._upload, each) for each in data.objects()}
            # The application owns everything. Superuser while loading, which row security does not stop.
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OWNER)))
            connection.execute(SCHEMA.read_bytes())
            for number, content in data.large_objects():
                connection.execute("SELECT lo_from_bytea(%s, %s)", (number, content))
            for table, columns, rows in data.tables():
                _load(connection, table, columns, rows)
            sizes = {key: upload.result() for key, upload in uploads.items()}
            columns = ("id", "message_id", "message_created_at", "storage_key", "content_type", "bytes")
            _load(connection, "attachments", columns, data.attachments(sizes))
            for table in IDENTITIES:
                connection.execute(
                    sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), max(id)) FROM {}").format(
                        sql.Literal(table), sql.Identifier(table)
                    )
                )
            connection.execute("SELECT setval('invoice_numbers', 99999 + count(*)) FROM invoices")
            connection.execute("REFRESH MATERIALIZED VIEW monthly_usage")
        with self.database.connect(application_name="synapse seed", autocommit=True) as connection:
            connection.execute("ANALYZE")
        return application

    def destroy(self) -> None:
        """Lose everything: the database with whoever is in it, every version of every object, the checkout.

        The application's role goes too, unless another database still needs it. What is gone already is no error.
        """
        with self.server.connect(application_name="synapse destroy", autocommit=True) as connection:
            name = sql.Identifier(self.database.dbname)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            with contextlib.suppress(psycopg.errors.DependentObjectsStillExist):
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(OWNER)))
        self._empty_bucket()
        if self.configuration.exists():
            shutil.rmtree(self.configuration)

    def fingerprint(self) -> Fingerprint:
        """What all three hold now, each read through an ordinary client and digested here."""
        with self.database.connect(application_name="synapse fingerprint") as connection:
            state = read_database(connection)
        return Fingerprint(
            tables=state.tables,
            sequences=state.sequences,
            large_objects=state.large_objects,
            definitions=state.definitions,
            objects=dict(self._read_objects()),
            configuration=read_commit(self.configuration),
            files=read_files(self.configuration),
        )

    def _create_database(self) -> DatabaseLogin:
        password = secrets.token_urlsafe(24)
        role, database = sql.Identifier(OWNER), sql.Identifier(self.database.dbname)
        with self.server.connect(application_name="synapse seed", autocommit=True) as connection:
            exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER,)).fetchone()
            change = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}" if exists else "CREATE ROLE {} LOGIN PASSWORD {}")
            connection.execute(change.format(role, sql.Literal(password)))
            try:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(database, role))
            except psycopg.errors.DuplicateDatabase as duplicate:
                raise BackupError(
                    f"The database {self.database.dbname} exists already.", mend="Destroy the application first."
                ) from duplicate
            connection.execute(sql.SQL("ALTER DATABASE {} SET lock_timeout = '30s'").format(database))
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS 'Synapse'").format(database))
        return DatabaseLogin(
            host=self.server.host,
            port=self.server.port,
            user=OWNER,
            password=password,
            dbname=self.database.dbname,
            sslmode=self.server.sslmode,
        )

    def _upload(self, each: StoredObject) -> int:
        """Write one key's whole history; returns the bytes of its newest version."""
        body = b""
        for version in range(each.drafts + 1):
            body = each.body(version)
            if len(body) > PART_BYTES:
                self._upload_parts(each, body)
            else:
                self.objects.put_object(
                    Bucket=self.bucket,
                    Key=each.key,
                    Body=body,
                    ContentType=each.content_type,
                    Metadata=each.metadata,
                )
        if each.deleted:
            self.objects.delete_object(Bucket=self.bucket, Key=each.key)
        return len(body)

    def _upload_parts(self, each: StoredObject, body: bytes) -> None:
        begun = self.objects.create_multipart_upload(
            Bucket=self.bucket, Key=each.key, ContentType=each.content_type, Metadata=each.metadata
        )
        parts: list[CompletedPartTypeDef] = []
        for number, start in enumerate(range(0, len(body), PART_BYTES), start=1):
            part = self.objects.upload_part(
                Bucket=self.bucket,
                Key=each.key,
                UploadId=begun["UploadId"],
                PartNumber=number,
                Body=body[start : start + PART_BYTES],
            )
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
        self.objects.complete_multipart_upload(
            Bucket=self.bucket, Key=each.key, UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}
        )

    def _empty_bucket(self) -> None:
        """Delete every version and delete marker. Always the first page: a deleted key is no place to go on from."""
        while True:
            page = self.objects.list_object_versions(Bucket=self.bucket)
            versions = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            doomed: list[ObjectIdentifierTypeDef] = [
                {"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions
            ]
            if not doomed:
                return
            answer = self.objects.delete_objects(Bucket=self.bucket, Delete={"Objects": doomed, "Quiet": True})
            if errors := answer.get("Errors"):
                raise BackupError(
                    f"{len(errors)} versions in {self.bucket} stayed, as {errors[0]['Key']}: {errors[0]['Message']}.",
                    mend="Allow s3:DeleteObjectVersion, and lift locks.",
                )

    def _read_objects(self) -> Iterator[tuple[str, Object]]:
        pages = self.objects.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            yield from pool.map(
                self._read_object, [entry["Key"] for page in pages for entry in page.get("Contents", [])]
            )

    def _read_object(self, key: str) -> tuple[str, Object]:
        answer = self.objects.get_object(Bucket=self.bucket, Key=key)
        digest = hashlib.sha256()
        for chunk in answer["Body"].iter_chunks(MIB):
            digest.update(chunk)
        return key, Object(digest.hexdigest(), answer["ContentType"], answer["Metadata"])


def _load(
    connection: psycopg.Connection[tuple[object, ...]], table: str, columns: tuple[str, ...], rows: Iterator[Row]
) -> None:
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(into) as copy:
        for row in rows:
            copy.write_row(row)
