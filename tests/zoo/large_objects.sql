-- Large objects: of several owners, granted, commented, empty, with holes, numbered at the ends.
SELECT lo_from_bytea(50001, 'plain'), lo_from_bytea(50002, ''), lo_from_bytea(4294967295, 'the last number'),
    lo_from_bytea(50003, decode(repeat('00ff5c27', 300000), 'hex'));
SELECT lo_put(50004, 100000, 'after a hole') FROM lo_create(50004);
ALTER LARGE OBJECT 50001 OWNER TO zoo_keeper;
ALTER LARGE OBJECT 50002 OWNER TO "zoo Odd ""role""; --";
GRANT SELECT ON LARGE OBJECT 50001 TO PUBLIC;
GRANT SELECT, UPDATE ON LARGE OBJECT 50003 TO zoo_visitor WITH GRANT OPTION;
REVOKE ALL ON LARGE OBJECT 50004 FROM postgres;
COMMENT ON LARGE OBJECT 50004 IS E'a large object''s\ncomment';
