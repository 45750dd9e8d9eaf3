-- where: current_setting('server_version_num')::int >= 170000
-- Every login is written down, since 17: a backup's logins may not write, and a restored copy must not write down its own restore.
CREATE TABLE acting.logins (n serial, who text);
GRANT INSERT ON acting.logins TO PUBLIC;
CREATE FUNCTION acting.logged_in() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO acting.logins (who) VALUES (session_user); END $$;
CREATE EVENT TRIGGER zoo_login ON login EXECUTE FUNCTION acting.logged_in();
ALTER EVENT TRIGGER zoo_login ENABLE ALWAYS;
