-- The three logins of the backup and the least that each needs, for PostgreSQL 15 to 18.
--
-- Run it as a superuser in every database that is backed up; running it again changes nothing. It sets no password:
--     psql -d synapse -f grants.sql
--     psql -d synapse -c '\password synapse_backup_barrier'      (and the other two)
-- pg_hba.conf must let them in, the last one also to the pseudo-database "replication".

DO $$
DECLARE
    login text;
BEGIN
    FOREACH login IN ARRAY ARRAY['synapse_backup_barrier', 'synapse_backup_dump', 'synapse_backup_replication'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = login) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', login);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), login);
    END LOOP;
END
$$;

-- Barrier: stops writes for a moment and marks it in the WAL.
-- LOCK TABLE ... IN SHARE MODE wants a write privilege. pg_write_all_data also covers tables and schemas that are made
-- tomorrow; pg_maintain (17 and later) could lock without it, but every new schema would need its own GRANT USAGE, and
-- until somebody thought of it no backup could be made. The role cannot read, so it cannot address a row either (DELETE
-- and UPDATE with a condition want SELECT), but whoever has its password can empty a table: the default below only
-- guards against mistakes.
ALTER ROLE synapse_backup_barrier
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 8;
ALTER ROLE synapse_backup_barrier SET default_transaction_read_only = on;
GRANT pg_write_all_data TO synapse_backup_barrier;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO synapse_backup_barrier;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO synapse_backup_barrier;
GRANT SET ON PARAMETER deadlock_timeout TO synapse_backup_barrier;
GRANT pg_monitor TO synapse_backup_barrier;  -- to name who is in the way, and what it runs

-- Dump: reads everything, for pg_dump, pg_dumpall --globals-only, digests and settings.
-- Row-level security would silently hide rows (BYPASSRLS). Large objects have their own privileges, which
-- pg_read_all_data does not cover: lo_compat_privileges turns that check off for this login. It does so for writing
-- large objects as well. From PostgreSQL 16 on the default below guards against mistakes; 15 writes large objects even
-- in a read-only transaction. Where a database has none, leave the line out.
-- pg_read_all_data reaches pg_authid, and so the roles' password hashes that a restore needs.
-- Every dump begins at once, up to twelve of them, and a second try may begin before a dead one's sessions are gone.
ALTER ROLE synapse_backup_dump
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS CONNECTION LIMIT 32;
ALTER ROLE synapse_backup_dump SET default_transaction_read_only = on;
ALTER ROLE synapse_backup_dump SET lo_compat_privileges = on;
GRANT pg_read_all_data TO synapse_backup_dump;
GRANT pg_read_all_settings TO synapse_backup_dump;
-- The lines of the server's own files, which Debian keeps where no base backup finds them. They may hold a password
-- (primary_conninfo), as what pg_read_all_settings shows may.
GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings() TO synapse_backup_dump;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO synapse_backup_dump;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ident_file_mappings() TO synapse_backup_dump;

-- Replication: base backups, WAL, and the slots that keep it. The attribute is enough for all of it; what the server runs
-- it sees by name only (pg_stat_activity), and that is enough to say who holds a lock.
-- A window, the continuous stream and a base backup may run at once, with up to three sessions each (its lock, its
-- slots, what it receives), and a second try may begin before a dead one's sessions are gone.
ALTER ROLE synapse_backup_replication
    NOSUPERUSER NOCREATEDB NOCREATEROLE REPLICATION NOBYPASSRLS CONNECTION LIMIT 16;

-- A trigger on login (PostgreSQL 17 and later) that writes would shut out whoever reads only.
DO $$
DECLARE
    login text;
BEGIN
    IF current_setting('server_version_num')::int >= 170000 THEN
        FOREACH login IN ARRAY ARRAY['synapse_backup_barrier', 'synapse_backup_dump', 'synapse_backup_replication'] LOOP
            EXECUTE format('ALTER ROLE %I SET event_triggers = off', login);
        END LOOP;
    END IF;
END
$$;
