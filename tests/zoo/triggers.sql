-- Triggers, which must not fire while rows are restored, nor come back awake when they were asleep.

CREATE SCHEMA acting;
CREATE TABLE acting.rows (id int, touched text);
CREATE TABLE acting.audit (n serial, what text);
CREATE FUNCTION acting.fires() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO acting.audit (what) VALUES (tg_name || ' ' || tg_op);
    IF tg_when = 'BEFORE' AND tg_level = 'ROW' THEN
        NEW.touched := coalesce(NEW.touched, '') || tg_argv[0];  -- a restore that fired it would write it twice
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE OF id ON acting.rows FOR EACH ROW WHEN (NEW.id > 0) EXECUTE FUNCTION acting.fires('it''s "x"', '2');
CREATE TRIGGER asleep BEFORE INSERT ON acting.rows FOR EACH ROW EXECUTE FUNCTION acting.fires('never');
ALTER TABLE acting.rows DISABLE TRIGGER asleep;
CREATE TRIGGER on_replica AFTER INSERT ON acting.rows FOR EACH STATEMENT EXECUTE FUNCTION acting.fires();
ALTER TABLE acting.rows ENABLE REPLICA TRIGGER on_replica;
CREATE TRIGGER "Always ""on""" AFTER TRUNCATE ON acting.rows FOR EACH STATEMENT EXECUTE FUNCTION acting.fires();
ALTER TABLE acting.rows ENABLE ALWAYS TRIGGER "Always ""on""";
CREATE TRIGGER sees_all AFTER UPDATE ON acting.rows REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION acting.fires();
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON acting.rows DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION acting.fires();
COMMENT ON TRIGGER touch ON acting.rows IS 'a trigger';
INSERT INTO acting.rows VALUES (1), (2), (-1);
SET CONSTRAINTS ALL IMMEDIATE;

CREATE VIEW acting.seen AS SELECT id FROM acting.rows;
CREATE FUNCTION acting.instead() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO acting.rows VALUES (NEW.id); RETURN NEW; END';
CREATE TRIGGER through INSTEAD OF INSERT ON acting.seen FOR EACH ROW EXECUTE FUNCTION acting.instead();

-- A trigger of a partitioned table, cloned to its partitions and disabled in one.
CREATE TABLE acting.parted (id int) PARTITION BY RANGE (id);
CREATE TABLE acting.parted_1 PARTITION OF acting.parted FOR VALUES FROM (0) TO (10);
CREATE TABLE acting.parted_2 PARTITION OF acting.parted FOR VALUES FROM (10) TO (20);
CREATE TRIGGER cloned AFTER INSERT ON acting.parted FOR EACH ROW EXECUTE FUNCTION acting.fires();
ALTER TABLE acting.parted_2 DISABLE TRIGGER cloned;
INSERT INTO acting.parted VALUES (1), (11);

-- Every change of definitions is written down: a restore that woke this one too early would write down itself.
CREATE TABLE acting.changes (n serial, tag text, object text);
CREATE FUNCTION acting.noted() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO acting.changes (tag, object) SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
END
$$;
CREATE EVENT TRIGGER zoo_noted ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE INDEX', 'COMMENT', 'REFRESH MATERIALIZED VIEW') EXECUTE FUNCTION acting.noted();
CREATE FUNCTION acting.forbidden() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
CREATE EVENT TRIGGER zoo_asleep ON sql_drop EXECUTE FUNCTION acting.forbidden();
ALTER EVENT TRIGGER zoo_asleep DISABLE;
COMMENT ON EVENT TRIGGER zoo_asleep IS 'an event trigger';
CREATE TABLE acting.noted_one (x int);
