-- Everything that runs, and everything that is built from it.

CREATE SCHEMA doing;
CREATE FUNCTION doing.plain(a int, b text DEFAULT 'it''s $$', VARIADIC c int[] DEFAULT '{}') RETURNS text LANGUAGE sql STABLE STRICT PARALLEL SAFE COST 7 AS $f$ SELECT $1 || $2 || '$$' $f$;
CREATE FUNCTION doing.plain(a text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET work_mem = '5MB' AS $$ BEGIN RETURN a || E'\n$body$\\'; END $$;
ALTER FUNCTION doing.plain(text) OWNER TO zoo_keeper;
CREATE FUNCTION doing.rows(OUT x int, OUT "Odd ""y" text) RETURNS SETOF record LANGUAGE sql ROWS 3 AS 'VALUES (1, ''a'')';
CREATE FUNCTION doing.any(anycompatible, anycompatiblearray) RETURNS anycompatible LANGUAGE sql IMMUTABLE LEAKPROOF AS 'SELECT $1';
CREATE PROCEDURE doing.commits(INOUT x int, IN y int DEFAULT 1) LANGUAGE plpgsql AS $$ BEGIN COMMIT; x := y; END $$;
CREATE PROCEDURE doing.commits(x text) LANGUAGE sql AS '';
COMMENT ON PROCEDURE doing.commits(int, int) IS 'a procedure';

-- A body that is parsed when it is made: what it uses must be there before it.
CREATE TABLE doing.used (id int PRIMARY KEY, v text);
INSERT INTO doing.used VALUES (1, 'one');
CREATE FUNCTION doing.atomic(i int) RETURNS text LANGUAGE sql STABLE BEGIN ATOMIC SELECT v FROM doing.used WHERE id = i; END;
CREATE FUNCTION doing.by_key(i int) RETURNS SETOF record LANGUAGE sql STABLE BEGIN ATOMIC SELECT id, v, count(*) FROM doing.used GROUP BY id; END;  -- needs the key
CREATE PROCEDURE doing.atomic_write(i int) BEGIN ATOMIC INSERT INTO doing.used VALUES (i, 'x'); DELETE FROM doing.used WHERE id = i; END;
CREATE TABLE doing.calls (x int DEFAULT length(doing.plain('a')), y text GENERATED ALWAYS AS ('n') STORED);
INSERT INTO doing.calls DEFAULT VALUES;

-- A type of one's own, from functions that the server has inside; first a shell, as a dump must do it too.
CREATE TYPE doing.shell_only;
CREATE TYPE doing.own;
CREATE FUNCTION doing.own_in(cstring) RETURNS doing.own LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION doing.own_out(doing.own) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE doing.own (INPUT = doing.own_in, OUTPUT = doing.own_out, LIKE = int4, CATEGORY = 'N', DEFAULT = '7', DELIMITER = ';');
CREATE TABLE doing.owns (o doing.own, a doing.own[]);
INSERT INTO doing.owns VALUES ('42', '{1;2}');
CREATE CAST (int AS doing.own) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (doing.own AS text) WITH INOUT;
CREATE FUNCTION doing.own_to_float(doing.own) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT 1.5::float8';
CREATE CAST (doing.own AS float8) WITH FUNCTION doing.own_to_float(doing.own) AS IMPLICIT;

CREATE FUNCTION doing.own_lt(doing.own, doing.own) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4lt';
CREATE FUNCTION doing.own_gt(doing.own, doing.own) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4gt';
CREATE FUNCTION doing.own_eq(doing.own, doing.own) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4eq';
CREATE FUNCTION doing.own_le(doing.own, doing.own) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4le';
CREATE FUNCTION doing.own_ge(doing.own, doing.own) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4ge';
CREATE FUNCTION doing.own_cmp(doing.own, doing.own) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
CREATE OPERATOR doing.<<< (LEFTARG = doing.own, RIGHTARG = doing.own, FUNCTION = doing.own_lt, COMMUTATOR = OPERATOR(doing.>>>), RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR doing.>>> (LEFTARG = doing.own, RIGHTARG = doing.own, FUNCTION = doing.own_gt, COMMUTATOR = OPERATOR(doing.<<<), RESTRICT = scalargtsel);
CREATE OPERATOR doing.<<=  (LEFTARG = doing.own, RIGHTARG = doing.own, FUNCTION = doing.own_le);
CREATE OPERATOR doing.>>= (LEFTARG = doing.own, RIGHTARG = doing.own, FUNCTION = doing.own_ge);
CREATE OPERATOR doing.=== (LEFTARG = doing.own, RIGHTARG = doing.own, FUNCTION = doing.own_eq, COMMUTATOR = OPERATOR(doing.===), HASHES, MERGES);
CREATE OPERATOR doing.!!! (RIGHTARG = doing.own, FUNCTION = doing.own_to_float);
CREATE OPERATOR FAMILY doing.own_family USING btree;
CREATE OPERATOR CLASS doing.own_ops DEFAULT FOR TYPE doing.own USING btree FAMILY doing.own_family AS
    OPERATOR 1 doing.<<<, OPERATOR 2 doing.<<=, OPERATOR 3 doing.===, OPERATOR 4 doing.>>=, OPERATOR 5 doing.>>>, FUNCTION 1 doing.own_cmp(doing.own, doing.own);
CREATE INDEX owned ON doing.owns (o);
CREATE TYPE doing.own_range AS RANGE (subtype = doing.own);
CREATE TABLE doing.own_ranges (r doing.own_range);
INSERT INTO doing.own_ranges VALUES ('[1,2)'), ('empty');
COMMENT ON OPERATOR doing.<<< (doing.own, doing.own) IS 'an operator';
COMMENT ON CAST (int AS doing.own) IS 'a cast';

CREATE AGGREGATE doing.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', COMBINEFUNC = int4pl, PARALLEL = SAFE, MSFUNC = int4pl, MINVFUNC = int4mi, MSTYPE = int, MINITCOND = '0');
CREATE AGGREGATE doing.ordered(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE AGGREGATE doing.least_own(int) (SFUNC = int4smaller, STYPE = int, SORTOP = OPERATOR(pg_catalog.<));
COMMENT ON AGGREGATE doing.total(int) IS 'an aggregate';
CREATE VIEW doing.uses_total AS SELECT doing.total(id) AS t FROM doing.used;

CREATE TEXT SEARCH DICTIONARY doing.short (TEMPLATE = simple, stopwords = english, accept = false);
CREATE TEXT SEARCH CONFIGURATION doing.words (PARSER = default);
ALTER TEXT SEARCH CONFIGURATION doing.words ADD MAPPING FOR asciiword, word WITH doing.short, simple;
CREATE TEXT SEARCH PARSER doing.parsed (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH TEMPLATE doing.template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
COMMENT ON TEXT SEARCH CONFIGURATION doing.words IS 'a configuration';
CREATE TABLE doing.searched (t text, v tsvector GENERATED ALWAYS AS (to_tsvector('doing.words', t)) STORED, c regconfig DEFAULT 'doing.words');
INSERT INTO doing.searched VALUES ('the quick brown fox');
CREATE INDEX ON doing.searched USING gin (to_tsvector('doing.words'::regconfig, t));

CREATE COLLATION doing.posix (locale = 'POSIX');
CREATE CONVERSION doing.conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE ACCESS METHOD zoo_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE ACCESS METHOD zoo_btree TYPE INDEX HANDLER bthandler;
COMMENT ON ACCESS METHOD zoo_heap IS 'an access method';
CREATE TABLE doing.other_heap (x int) USING zoo_heap;
INSERT INTO doing.other_heap VALUES (1);
CREATE FUNCTION doing.to_sql(internal) RETURNS internal LANGUAGE internal AS 'varchar_support';
-- A language of one's own. Had it the server's own handlers, the dump would name none of them.
CREATE FUNCTION doing.call_handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE TRUSTED LANGUAGE zoo_language HANDLER doing.call_handler;
CREATE FUNCTION doing.in_it() RETURNS int LANGUAGE zoo_language AS 'BEGIN RETURN 1; END';
