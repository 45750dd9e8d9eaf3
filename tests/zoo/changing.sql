-- Tables that are written to while the zoo is backed up.
CREATE SCHEMA changing;
CREATE TABLE changing.accounts (id int PRIMARY KEY, balance int NOT NULL, history jsonb NOT NULL DEFAULT '[]', note text);
INSERT INTO changing.accounts SELECT n, 100, '[]', repeat('n', n * 10) FROM generate_series(1, 200) AS n;
CREATE TABLE changing.parted (id bigserial, k int NOT NULL, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE changing.parted_0 PARTITION OF changing.parted FOR VALUES IN (0);
CREATE TABLE changing.parted_rest PARTITION OF changing.parted DEFAULT;
CREATE SEQUENCE changing.busy;
CREATE MATERIALIZED VIEW changing.totals AS SELECT sum(balance) AS total FROM changing.accounts;
CREATE UNIQUE INDEX ON changing.totals (total);
