-- Roles of the whole server. They stay when the zoo is closed; a restore onto a server that lacks them makes them again.

-- In the order of their names, in which a dump makes them: some lists are in the order of the roles' numbers.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ZOO_UPPER', 'zoo Odd "role"; --', 'zoo_a_member', 'zoo_keeper', 'zoo_vet', 'zoo_visitor', 'zoo_z_grantor']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I', name);
        END IF;
    END LOOP;
END
$$;

ALTER ROLE zoo_keeper LOGIN CREATEDB CONNECTION LIMIT 7 VALID UNTIL '2031-02-03 04:05+00' PASSWORD 'it''s "hidden"';
ALTER ROLE zoo_keeper SET search_path = 'a b', "$user", public;  -- a list, one of its names quoted
ALTER ROLE zoo_vet NOINHERIT VALID UNTIL 'infinity';
COMMENT ON ROLE zoo_keeper IS E'keeps the zoo; it''s "hard"\n-- no comment\n\\connect nowhere';

GRANT zoo_keeper TO zoo_visitor WITH ADMIN OPTION;
GRANT zoo_visitor TO zoo_vet;
GRANT pg_monitor TO "zoo Odd ""role""; --";

-- Granted by somebody whose own right to grant it is written after it: members are listed by name.
GRANT zoo_vet TO zoo_z_grantor WITH ADMIN OPTION;
SET ROLE zoo_z_grantor;
GRANT zoo_vet TO zoo_a_member;
RESET ROLE;

-- What a role may do to a parameter belongs to no database.
GRANT SET, ALTER SYSTEM ON PARAMETER log_min_duration_statement TO zoo_keeper WITH GRANT OPTION;
