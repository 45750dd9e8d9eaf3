-- What rows must keep among themselves, and in which order a restore can make them keep it.

CREATE SCHEMA bonds;

-- Two tables that need each other, and a row that needs itself: no order of loading would do with the keys in place.
CREATE TABLE bonds.hen (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE bonds.egg (id int PRIMARY KEY, hen int NOT NULL REFERENCES bonds.hen DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE bonds.hen ADD CONSTRAINT "hen's egg" FOREIGN KEY (egg) REFERENCES bonds.egg ON DELETE CASCADE ON UPDATE SET DEFAULT DEFERRABLE INITIALLY DEFERRED;
INSERT INTO bonds.hen VALUES (1, 10), (2, 20);
INSERT INTO bonds.egg VALUES (10, 2), (20, 1);
CREATE TABLE bonds.self (id int PRIMARY KEY, parent int REFERENCES bonds.self ON DELETE SET NULL (parent));
INSERT INTO bonds.self VALUES (1, 1);
INSERT INTO bonds.self VALUES (2, 3), (3, 2);  -- one statement, or neither could be first
COMMENT ON CONSTRAINT "hen's egg" ON bonds.hen IS 'circular';

CREATE TABLE bonds.unique_kinds (
    a int UNIQUE DEFERRABLE, b int, c int, CONSTRAINT nulls_count UNIQUE NULLS NOT DISTINCT (b, c), d text, UNIQUE (d) INCLUDE (a),
    CONSTRAINT later PRIMARY KEY (a, b) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO bonds.unique_kinds VALUES (1, 1, NULL, 'x');

-- Rows from before the constraint break it: it must come back unchecked.
CREATE TABLE bonds.unchecked (x int, r int);
INSERT INTO bonds.unchecked VALUES (-1, 12345);
ALTER TABLE bonds.unchecked ADD CONSTRAINT positive CHECK (x > 0) NOT VALID, ADD CONSTRAINT known FOREIGN KEY (r) REFERENCES bonds.hen NOT VALID;

-- MATCH FULL, several columns, onto a unique key that is no primary one.
CREATE TABLE bonds.target (x int, y int, UNIQUE (y, x));
CREATE TABLE bonds.full_match (a int, b int, FOREIGN KEY (a, b) REFERENCES bonds.target (x, y) MATCH FULL);
INSERT INTO bonds.target VALUES (1, 2), (NULL, NULL);
INSERT INTO bonds.full_match VALUES (1, 2), (NULL, NULL);

-- No two rooms at once, by an index that an extension gives.
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE TABLE bonds.bookings (
    room int, during tsrange, cancelled boolean NOT NULL DEFAULT false,
    CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&) INCLUDE (cancelled) WHERE (NOT cancelled) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO bonds.bookings VALUES (1, '[2026-01-01,2026-01-02)', false), (1, '[2026-01-01,2026-01-02)', true);

-- Checks that call functions; the second finds its helper by a search_path of its own, since a restore has none.
CREATE FUNCTION bonds.good(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 0';
CREATE FUNCTION bonds.finds_its_way(int) RETURNS boolean LANGUAGE plpgsql STABLE SET search_path = bonds, pg_catalog AS $$ BEGIN RETURN good($1); END $$;
CREATE TABLE bonds.checked (x int CHECK (bonds.good(x)), y int CONSTRAINT finds CHECK (bonds.finds_its_way(y)), CHECK (x IS DISTINCT FROM y OR (x, y) IS NULL));
INSERT INTO bonds.checked VALUES (1, 2);

-- Many pairs whose keys run both ways: restored side by side, two of them wait for each other's locks.
DO $$
BEGIN
    FOR n IN 1..20 LOOP
        EXECUTE format('CREATE TABLE bonds.left_%s (id int PRIMARY KEY, other int)', n);
        EXECUTE format('CREATE TABLE bonds.right_%1$s (id int PRIMARY KEY, other int REFERENCES bonds.left_%1$s)', n);
        EXECUTE format('ALTER TABLE bonds.left_%1$s ADD FOREIGN KEY (other) REFERENCES bonds.right_%1$s', n);
    END LOOP;
END $$;

-- Two indexes of one table, each of which changes the table when it is there: a deadlock, side by side.
CREATE TABLE bonds.clustered (a int NOT NULL, b int NOT NULL);
CREATE UNIQUE INDEX clustered_a ON bonds.clustered (a);
CREATE UNIQUE INDEX clustered_b ON bonds.clustered (b);
ALTER TABLE bonds.clustered CLUSTER ON clustered_a, REPLICA IDENTITY USING INDEX clustered_b;
INSERT INTO bonds.clustered VALUES (1, 2), (3, 1);
