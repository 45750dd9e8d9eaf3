-- Extensions that both packages have, their types in tables, their operators in indexes; one was moved, one belongs to a schema of its own.
CREATE SCHEMA "ext schema";
CREATE EXTENSION hstore WITH SCHEMA "ext schema";
CREATE EXTENSION citext; ALTER EXTENSION citext SET SCHEMA "ext schema";
CREATE EXTENSION ltree; CREATE EXTENSION pg_trgm; CREATE EXTENSION cube; CREATE EXTENSION earthdistance; CREATE EXTENSION isn;
CREATE EXTENSION intarray; CREATE EXTENSION unaccent; CREATE EXTENSION bloom; CREATE EXTENSION lo; CREATE EXTENSION pg_stat_statements;
CREATE EXTENSION tablefunc WITH SCHEMA "ext schema" VERSION '1.0';
COMMENT ON EXTENSION ltree IS 'another comment than its own';
GRANT EXECUTE ON FUNCTION public.unaccent(text) TO zoo_vet;  -- a grant on what an extension made

CREATE SCHEMA extended;
CREATE TABLE extended.types (h "ext schema".hstore, c "ext schema".citext UNIQUE, l public.ltree, q public.lquery, cu public.cube, e public.ean13, big public.lo, tags int[], id int DEFAULT 1);
INSERT INTO extended.types VALUES
    ('a=>NULL, "b c"=>"NULL", "\"x"=>""', 'Case', 'top.mid.leaf', '*.mid@*.!x{1,2}', '(1,2),(3,4)', '9780393040029', 50001, '{3,1,2}'),
    ('', 'other', '', NULL, '(0)', NULL, NULL, '{}');
CREATE INDEX ON extended.types USING gist (l); CREATE INDEX ON extended.types USING gin (h);
CREATE INDEX ON extended.types USING gin ((c::text) public.gin_trgm_ops);
CREATE INDEX ON extended.types USING gist (tags public.gist__int_ops (numranges = 50));
CREATE INDEX ON extended.types USING bloom (id) WITH (length = 100, col1 = 3);
CREATE TEXT SEARCH CONFIGURATION extended.bare (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION extended.bare ALTER MAPPING FOR word WITH public.unaccent, simple;
-- What was put into an extension later belongs to it, and no dump has it.
CREATE FUNCTION extended.adopted() RETURNS int LANGUAGE sql AS 'SELECT 1';
