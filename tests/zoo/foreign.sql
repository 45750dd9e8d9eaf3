-- Other servers' tables: only their definitions are here. The keys to them are options that the dump's login may not see.
CREATE EXTENSION postgres_fdw; CREATE EXTENSION file_fdw;
CREATE SCHEMA abroad;
CREATE SERVER zoo_far TYPE 'postgres' VERSION '15' FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere.invalid', port '5432', dbname 'it''s "far"', fetch_size '50');
ALTER SERVER zoo_far OWNER TO zoo_keeper;
CREATE USER MAPPING FOR zoo_keeper SERVER zoo_far OPTIONS (user 'far', password 'it''s \secret');
CREATE USER MAPPING FOR PUBLIC SERVER zoo_far OPTIONS (user 'anybody', password_required 'false');
CREATE USER MAPPING FOR "zoo Odd ""role""; --" SERVER zoo_far;
CREATE FOREIGN TABLE abroad.away (id int OPTIONS (column_name 'ID') NOT NULL, t text COLLATE "C" DEFAULT 'x', CHECK (id > 0)) SERVER zoo_far OPTIONS (schema_name 's', table_name 'it''s');
CREATE SERVER zoo_files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE abroad.file (line text) SERVER zoo_files OPTIONS (filename '/nowhere/at all', format 'csv', delimiter ';');
CREATE FOREIGN DATA WRAPPER zoo_wrapper OPTIONS (debug 'true');
GRANT USAGE ON FOREIGN SERVER zoo_far TO zoo_vet WITH GRANT OPTION; GRANT USAGE ON FOREIGN DATA WRAPPER zoo_wrapper TO zoo_vet;
GRANT SELECT ON abroad.away TO zoo_visitor;
COMMENT ON SERVER zoo_far IS 'a server'; COMMENT ON FOREIGN TABLE abroad.away IS 'a foreign table'; COMMENT ON COLUMN abroad.away.id IS 'a column of it';
-- A partition that lives abroad: its parent's dump must not ask for its rows.
CREATE TABLE abroad.parted (x int) PARTITION BY RANGE (x);
CREATE TABLE abroad.parted_here PARTITION OF abroad.parted FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE abroad.parted_there PARTITION OF abroad.parted FOR VALUES FROM (10) TO (20) SERVER zoo_far;
INSERT INTO abroad.parted VALUES (1);
