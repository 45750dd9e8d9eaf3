-- What is computed from other things, in the order in which a restore has to make them.

CREATE SCHEMA looks;
CREATE TABLE looks.base (id int PRIMARY KEY, v text, n numeric);
INSERT INTO looks.base SELECT n, 'v' || n, n / 3.0 FROM generate_series(1, 30) AS n;

CREATE VIEW looks.z_first AS SELECT id, v, n FROM looks.base WHERE id % 2 = 0 WITH LOCAL CHECK OPTION;
CREATE MATERIALIZED VIEW looks.m_on_view AS SELECT id / 10 AS tens, count(*) AS c, string_agg(v, ',' ORDER BY id) AS vs FROM looks.z_first GROUP BY 1;
CREATE UNIQUE INDEX m_key ON looks.m_on_view (tens);
CREATE VIEW looks.on_m AS SELECT max(c) AS c FROM looks.m_on_view;
CREATE MATERIALIZED VIEW looks.a_on_m AS SELECT c FROM looks.on_m;  -- by name before what it is computed from
CREATE MATERIALIZED VIEW looks.never_filled AS SELECT 1 / (count(*) - count(*)) AS never FROM looks.base WITH NO DATA;
CREATE MATERIALIZED VIEW looks.on_never AS SELECT * FROM looks.never_filled WITH NO DATA;
COMMENT ON MATERIALIZED VIEW looks.a_on_m IS 'a materialized view on a view on a materialized view on a view';

CREATE RECURSIVE VIEW looks.counted (n) AS SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < 5;
CREATE VIEW looks.hidden WITH (security_barrier, security_invoker, check_option = cascaded) AS SELECT * FROM looks.z_first WHERE id < 20;
CREATE VIEW looks.windows AS SELECT id, rank() OVER w, sum(n) FILTER (WHERE id > 3) OVER (PARTITION BY id % 3 ORDER BY n RANGE BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM looks.base WINDOW w AS (ORDER BY v COLLATE "C" DESC);
CREATE VIEW looks.joined AS SELECT * FROM looks.base AS a (i) LEFT JOIN LATERAL (SELECT a.i AS j) AS b ON true CROSS JOIN ROWS FROM (generate_series(1, 2), unnest(ARRAY['x'])) WITH ORDINALITY AS f (x, y, o) WHERE (a.i, 'x') IN (VALUES (1, 'x'), (2, 'y'));
CREATE VIEW looks.with_default AS SELECT id, v FROM looks.base;
ALTER VIEW looks.with_default ALTER COLUMN v SET DEFAULT 'from the view';
CREATE VIEW looks.no_columns AS SELECT;

-- Views that need a key of their table (GROUP BY it alone), which only comes after the rows.
CREATE VIEW looks.needs_the_key AS SELECT id, v, count(*) FROM looks.base GROUP BY id;

-- Two views, each of the other: a rule is the only way to make them, and the dump must break the circle.
CREATE VIEW looks.ouroboros_a AS SELECT 1 AS x;
CREATE VIEW looks.ouroboros_b AS SELECT x FROM looks.ouroboros_a;
CREATE OR REPLACE VIEW looks.ouroboros_a AS SELECT x FROM looks.ouroboros_b;
-- A function of a view's rows, which the view calls.
CREATE VIEW looks.eats_itself AS SELECT 1 AS x;
CREATE FUNCTION looks.bite(looks.eats_itself) RETURNS int LANGUAGE sql AS 'SELECT $1.x';
CREATE OR REPLACE VIEW looks.eats_itself AS SELECT 1 AS x, looks.bite(ROW(1)::looks.eats_itself) AS y;
CREATE OR REPLACE VIEW looks.eats_itself AS SELECT 1 AS x, looks.bite(ROW(1, NULL::int)::looks.eats_itself) AS y;

-- Rules: conditional, with several actions, turned off, onto another table.
CREATE TABLE looks.log (what text, at timestamptz DEFAULT '2026-01-01Z');
CREATE RULE "log it" AS ON UPDATE TO looks.base WHERE old.v IS DISTINCT FROM new.v DO ALSO (INSERT INTO looks.log (what) VALUES (old.v || '->' || new.v); SELECT 1);
CREATE RULE tells AS ON INSERT TO looks.base DO ALSO NOTIFY changed;
CREATE RULE never AS ON DELETE TO looks.log DO INSTEAD NOTHING;
CREATE RULE off AS ON INSERT TO looks.log DO INSTEAD NOTHING;
ALTER TABLE looks.log DISABLE RULE off;
CREATE RULE always AS ON UPDATE TO looks.log DO INSTEAD NOTHING;
ALTER TABLE looks.log ENABLE ALWAYS RULE always;
CREATE RULE insertable AS ON INSERT TO looks.needs_the_key DO INSTEAD INSERT INTO looks.base (id, v) VALUES (new.id, new.v) RETURNING id, v, 1::bigint;
COMMENT ON RULE never ON looks.log IS 'a rule';
UPDATE looks.base SET v = 'changed' WHERE id = 1;
