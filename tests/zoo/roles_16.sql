-- where: current_setting('server_version_num')::int >= 160000
-- Memberships whose three options differ, since 16.
GRANT zoo_keeper TO "ZOO_UPPER" WITH ADMIN FALSE, INHERIT FALSE, SET TRUE;
GRANT zoo_visitor TO "ZOO_UPPER" WITH ADMIN TRUE, INHERIT TRUE, SET FALSE;
