-- Numbers: owned, loose, ahead, behind, at their end.

CREATE SCHEMA counting;
CREATE TABLE counting.users (id serial PRIMARY KEY, other bigint);
INSERT INTO counting.users (other) VALUES (1), (2), (3);
CREATE SEQUENCE counting.owned_by_other OWNED BY counting.users.other;  -- owned, and no default uses it
CREATE SEQUENCE counting.untouched;
CREATE SEQUENCE counting.called_once; SELECT nextval('counting.called_once');  -- 1 as well, but the next is 2
CREATE SEQUENCE counting.ahead; SELECT setval('counting.ahead', 9223372036854775806);
CREATE SEQUENCE counting.at_its_end MAXVALUE 5; SELECT setval('counting.at_its_end', 5);
CREATE SEQUENCE counting.down AS smallint INCREMENT -3 MINVALUE -300 MAXVALUE -1 START -1 CYCLE CACHE 20; SELECT nextval('counting.down');
CREATE SEQUENCE counting."Odd ""one"".'x'" AS int START 7 MINVALUE 7; SELECT setval('counting."Odd ""one"".''x''"', 7, false);
CREATE UNLOGGED SEQUENCE counting.unlogged; SELECT setval('counting.unlogged', 42);
SELECT setval('counting.users_id_seq', 1000);  -- ahead of its rows
CREATE TABLE counting.shares (id int DEFAULT nextval('counting.ahead'));  -- uses one that it does not own
INSERT INTO counting.shares VALUES (1);
COMMENT ON SEQUENCE counting.ahead IS 'ahead';
