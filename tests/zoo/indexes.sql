-- Indexes of every kind, and those that are not whole.

CREATE SCHEMA finding;
CREATE TABLE finding.things (id int PRIMARY KEY, "Odd Name" text, j jsonb, r int4range, a int[], at timestamptz, ip inet);
INSERT INTO finding.things SELECT n, 'name ' || n, jsonb_build_object('n', n), int4range(n, n + 5), ARRAY[n, n + 1], '2026-01-01Z'::timestamptz + n * interval '1 day', '10.0.0.1'::inet + n
    FROM generate_series(1, 200) AS n;
CREATE INDEX "Upper and lower" ON finding.things (upper("Odd Name") text_pattern_ops, id DESC NULLS LAST) INCLUDE (at) WHERE id > 10 AND "Odd Name" <> 'it''s';
CREATE UNIQUE INDEX one_null ON finding.things (("Odd Name" COLLATE "C")) NULLS NOT DISTINCT;
CREATE INDEX by_hash ON finding.things USING hash ("Odd Name");
CREATE INDEX by_gin ON finding.things USING gin (j jsonb_path_ops, a) WITH (fastupdate = off);
CREATE INDEX by_gist ON finding.things USING gist (r);
CREATE INDEX by_spgist ON finding.things USING spgist (ip);
CREATE INDEX by_brin ON finding.things USING brin (at timestamptz_minmax_multi_ops (values_per_range = 16)) WITH (pages_per_range = 3, autosummarize = on);
CREATE INDEX by_expression ON finding.things ((j ->> 'n'), (a[1] + id));
COMMENT ON INDEX finding.by_brin IS 'an index';

-- An index of the root that one partition lacks: it is invalid until all are attached, and stays so.
CREATE TABLE finding.parted (x int, y int) PARTITION BY RANGE (x);
CREATE TABLE finding.parted_1 PARTITION OF finding.parted FOR VALUES FROM (0) TO (10);
CREATE TABLE finding.parted_2 PARTITION OF finding.parted FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (x);
CREATE TABLE finding.parted_2_1 PARTITION OF finding.parted_2 FOR VALUES FROM (10) TO (20);
CREATE INDEX whole ON finding.parted (y, x);
CREATE INDEX partial_on_root ON ONLY finding.parted (x);
CREATE INDEX attached_by_hand ON finding.parted_1 (x);
ALTER INDEX finding.partial_on_root ATTACH PARTITION finding.attached_by_hand;
INSERT INTO finding.parted SELECT n, n FROM generate_series(0, 19) AS n;

-- Left behind by a CREATE INDEX CONCURRENTLY that failed: no dump has it.
CREATE INDEX left_behind ON finding.things (at);
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'finding.left_behind'::regclass;
