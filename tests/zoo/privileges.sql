-- Who may do what: granted, granted on, revoked, by default, by row, by column.

CREATE SCHEMA rights AUTHORIZATION zoo_keeper;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA rights TO zoo_visitor WITH GRANT OPTION;
SET ROLE zoo_keeper;
CREATE TABLE rights.secrets (id int, owner name, body text, salary int);
INSERT INTO rights.secrets VALUES (1, 'zoo_visitor', 'a', 1), (2, 'zoo_vet', 'b', 2);
GRANT SELECT (id, body), UPDATE (body) ON rights.secrets TO zoo_visitor WITH GRANT OPTION;
GRANT SELECT ON rights.secrets TO PUBLIC;
GRANT INSERT, DELETE, TRUNCATE, REFERENCES, TRIGGER ON rights.secrets TO "zoo Odd ""role""; --";
REVOKE INSERT ON rights.secrets FROM zoo_keeper;  -- the owner himself
RESET ROLE;
SET ROLE zoo_visitor;
GRANT SELECT (id) ON rights.secrets TO zoo_vet;  -- granted by one who may grant it
RESET ROLE;

ALTER TABLE rights.secrets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;  -- not even its owner sees all rows
CREATE POLICY own ON rights.secrets FOR SELECT TO zoo_visitor USING (owner = current_user);
CREATE POLICY "No ""writes""" ON rights.secrets AS RESTRICTIVE FOR UPDATE USING (id > 0) WITH CHECK (salary < (SELECT max(s.salary) FROM rights.secrets AS s));
COMMENT ON POLICY own ON rights.secrets IS 'a policy';

CREATE FUNCTION rights.run() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
REVOKE ALL ON FUNCTION rights.run() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rights.run() TO "ZOO_UPPER";
CREATE TYPE rights.kind AS ENUM ('a');
REVOKE USAGE ON TYPE rights.kind FROM PUBLIC;
CREATE DOMAIN rights.dom AS int; GRANT USAGE ON DOMAIN rights.dom TO zoo_vet WITH GRANT OPTION;
CREATE SEQUENCE rights.numbers; GRANT USAGE, UPDATE ON SEQUENCE rights.numbers TO zoo_vet;
CREATE TABLE rights.nobodys (x int); REVOKE ALL ON rights.nobodys FROM PUBLIC, postgres;
CREATE VIEW rights.viewed AS SELECT id FROM rights.secrets; GRANT SELECT ON rights.viewed TO zoo_vet;
ALTER VIEW rights.viewed OWNER TO zoo_keeper;

-- Defaults for what is made later, of one schema and of all; one takes away what everybody has.
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_keeper IN SCHEMA rights GRANT SELECT ON TABLES TO zoo_visitor WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_keeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA rights GRANT USAGE ON SEQUENCES TO "zoo Odd ""role""; --";
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_keeper GRANT USAGE ON SCHEMAS TO zoo_vet;
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_vet REVOKE ALL ON TYPES FROM PUBLIC;

-- The system's own: a dump tells what differs from the server's first day.
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) FROM PUBLIC;
GRANT SELECT (rolname) ON pg_catalog.pg_authid TO zoo_vet;
