"""The main job, without Airflow: back up, lose everything, restore, and find it equal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg
import pytest

from include.backup.application import Application
from include.backup.full import make_full_backup
from include.backup.verify import check_integrity, check_sizes, restore_sample
from include.pipeline.keys import Keyring
from include.pipeline.progress import Progress
from include.pipeline.store import Bucket
from include.policy import Policy, load_policy
from include.recovery.configuration import restore_configuration
from include.recovery.database import restore_database
from include.recovery.objects import restore_objects
from include.recovery.opened import OpenedBackup
from include.repository.catalog import Catalog
from include.repository.layout import BackupId
from include.sandbox.postgres import PostgresServer
from include.sandbox.s3 import S3Server
from include.sandbox.synapse import Synapse
from include.sources.configuration import Configuration


def test_scratch(tmp_path, postgres18, s3_primary):
    import time
    t=time.time()
    sup = postgres18.superuser
    name = s3_primary.create_bucket("app-"+secrets.token_hex(4))
    bb = s3_primary.create_bucket("bk-"+secrets.token_hex(4))
    syn = Synapse(database=sup, objects=s3_primary.client(), bucket=name, configuration=tmp_path/"conf")
    syn.seed()
    print("seed", time.time()-t); t=time.time()
    fp = syn.fingerprint()
    print("fp", time.time()-t); t=time.time()
    k = Keyring.create(tmp_path/"keyring.json")
    bucket = Bucket(s3_primary.session(), bb, endpoint_url=s3_primary.endpoint_url)
    cat = Catalog(bucket, k)
    objs = Bucket(s3_primary.session(), name, endpoint_url=s3_primary.endpoint_url)
    db = sup.with_database("synapse")
    app = Application(barrier=db, dump=db, objects=objs, configuration=Configuration(tmp_path/"conf"))
    pol = load_policy()
    bid = BackupId("full", datetime(2026,11,22,tzinfo=UTC))
    m = make_full_backup(bid, slot=None, application=app, catalog=cat, policy=pol, scratch=tmp_path)
    print("backup", time.time()-t); t=time.time()
    from include.backup.full import summary
    print(summary(m), m.warnings)
    print(check_integrity(cat, bid, pol, scratch=tmp_path), time.time()-t); t=time.time()
    print(check_sizes(cat, bid, pol, scratch=tmp_path), time.time()-t); t=time.time()
    for d in range(1,5):
        print(restore_sample(cat, bid, pol, server=sup, day=date(2026,1,d), scratch=tmp_path), time.time()-t); t=time.time()
    syn.destroy()
    print("destroy", time.time()-t); t=time.time()
    with Progress("restore") as p:
        o = OpenedBackup(cat, m, policy=pol.pipeline, progress=p)
        print(restore_database(o, server=sup, name="synapse", scratch=tmp_path), time.time()-t); t=time.time()
        print(restore_objects(o, objs), time.time()-t); t=time.time()
        print(restore_configuration(o, tmp_path/"conf"), time.time()-t); t=time.time()
    assert fp.difference(syn.fingerprint()) == []
