-- where: current_setting('server_version_num')::int >= 180000
-- What only 18 has: columns that are computed when they are read, keys over time, NOT NULL that was never checked.
CREATE SCHEMA eighteen;
CREATE TABLE eighteen.computed (x int, twice int GENERATED ALWAYS AS (x * 2) VIRTUAL, kept int GENERATED ALWAYS AS (x * 3) STORED, plain int);
INSERT INTO eighteen.computed (x, plain) VALUES (1, 1), (NULL, 2), (3, NULL);
CREATE TABLE eighteen.only_computed (x int, y int GENERATED ALWAYS AS (x) VIRTUAL);
INSERT INTO eighteen.only_computed (x) VALUES (1);
ALTER TABLE eighteen.only_computed DROP COLUMN x CASCADE;  -- one row, and no column

CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE TABLE eighteen.rooms (id int, during tstzrange, CONSTRAINT rooms_key PRIMARY KEY (id, during WITHOUT OVERLAPS));
CREATE TABLE eighteen.bookings (
    room int, during tstzrange, UNIQUE (room, during WITHOUT OVERLAPS),
    CONSTRAINT in_a_room FOREIGN KEY (room, PERIOD during) REFERENCES eighteen.rooms (id, PERIOD during)
);
INSERT INTO eighteen.rooms VALUES (1, '[2026-01-01,2026-02-01)'), (1, '[2026-02-01,2026-03-01)');
INSERT INTO eighteen.bookings VALUES (1, '[2026-01-10,2026-02-10)');

CREATE TABLE eighteen.unchecked (x int, y int CONSTRAINT "Y there" NOT NULL, z int, CONSTRAINT z_own NOT NULL z NO INHERIT);
INSERT INTO eighteen.unchecked VALUES (NULL, 1, 1);
ALTER TABLE eighteen.unchecked ADD CONSTRAINT x_later NOT NULL x NOT VALID;
CREATE TABLE eighteen.not_enforced (x int, CONSTRAINT wish CHECK (x > 0) NOT ENFORCED, r int);
INSERT INTO eighteen.not_enforced VALUES (-1, 99);
CREATE TABLE eighteen.not_enforced_target (id int PRIMARY KEY);
ALTER TABLE eighteen.not_enforced ADD CONSTRAINT nowhere FOREIGN KEY (r) REFERENCES eighteen.not_enforced_target NOT ENFORCED;
