-- One column a type, and in each the values that a text format gets wrong first: infinities, odd bounds, empty things.

CREATE SCHEMA vals;
COMMENT ON SCHEMA vals IS 'Values of every type.';

CREATE TYPE vals.mood AS ENUM ('sad', 'it''s ok', 'ha"ppy', '', 'a,b', 'NULL', 'back\slash', 'süß');
ALTER TYPE vals.mood ADD VALUE 'first' BEFORE 'sad';  -- its order is no longer that of its oids
ALTER TYPE vals.mood ADD VALUE 'between' AFTER 'sad';
CREATE TYPE vals.no_mood AS ENUM ();

CREATE TYPE vals.pair AS (x int, "odd ""Name" text COLLATE "C");
CREATE TYPE vals.nest AS (p vals.pair, ps vals.pair[], m vals.mood);
CREATE TYPE vals.hollow AS ();
COMMENT ON COLUMN vals.pair.x IS 'a column of a composite type';

CREATE TYPE vals.float_range AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = vals.floats);
CREATE FUNCTION vals.text_diff(text, text) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT length($1)::float8 - length($2)';
CREATE TYPE vals.text_range AS RANGE (subtype = text, collation = "C", subtype_diff = vals.text_diff);

-- Domains over domains, whose checks call functions that the dump has to have made before.
CREATE FUNCTION vals.is_even(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN $1 % 2 = 0; END $$;
CREATE DOMAIN vals.even AS int CONSTRAINT "must be Even" CHECK (vals.is_even(VALUE));
CREATE DOMAIN vals.small_even AS vals.even DEFAULT 4 NOT NULL CHECK (VALUE < 1000);
CREATE DOMAIN vals.evens AS vals.even[] CHECK (cardinality(VALUE) < 10);
CREATE DOMAIN vals.pair_of AS vals.pair CHECK ((VALUE).x > 0);
ALTER DOMAIN vals.even ADD CONSTRAINT later CHECK (VALUE <> 6) NOT VALID;
COMMENT ON CONSTRAINT later ON DOMAIN vals.even IS 'a domain''s constraint';

CREATE TABLE vals.numbers (
    n serial PRIMARY KEY, s int2, i int4, b int8, d numeric, d2 numeric(10, 2), dn numeric(3, -2), r real, f float8,
    m money, o oid
);
INSERT INTO vals.numbers (s, i, b, d, d2, dn, r, f, m, o) VALUES
    (-32768, -2147483648, -9223372036854775808, 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', '-92233720368547758.08', 0),
    (32767, 2147483647, 9223372036854775807, 'Infinity', NULL, NULL, 'Infinity', 'Infinity', '92233720368547758.07', 4294967295),
    (0, 0, 0, '-Infinity', 0, 12300, '-Infinity', '-Infinity', 0, 1),
    (1, 1, 1, 1e-400, 0.01, -4900, '-0', '-0', 0.01, 2),
    (1, 1, 1, repeat('9', 3000)::numeric, 99999999.99, 0, 1.17549435e-38, 5e-324, 1, 3),
    (1, 1, 1, 0.1000, 1.10, 100, 3.4028235e38, 1.7976931348623157e308, 1, 3),
    (NULL, NULL, NULL, NULL, NULL, NULL, 0.1, 0.1::float8 + 0.2, NULL, NULL);

CREATE TABLE vals.moments (
    d date, t time, tz timetz, ts timestamp, tstz timestamptz, ts0 timestamptz(0), i interval, iy interval year to month,
    id interval day to second(3)
);
INSERT INTO vals.moments VALUES
    ('infinity', '24:00:00', '24:00:00-15:59', 'infinity', 'infinity', 'infinity', '0', '0', '0'),
    ('-infinity', '00:00:00', '00:00:00+15:59', '-infinity', '-infinity', '-infinity', '-1 year -2 mons +3 days -04:05:06.000001', '-1 year', '-1 day'),
    ('4713-01-01 BC', '23:59:59.999999', '12:00+05:30', '4713-01-01 00:00 BC', '4713-01-02 00:00+00 BC', '2026-03-29 01:30+00', '178000000 years', '1 mon', '1 day -00:00:00.001'),
    ('5874897-12-31', '12:34:56.7', '02:30:00+00', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59+00', '2026-10-25 00:30+00', '-00:00:00.000001', '-178000000 years', '2 days 23:59:59.999'),
    ('0001-01-01', NULL, NULL, '0044-03-15 12:00 BC', '1883-11-18 12:03:58-04:56:02', '1900-01-01 00:00+00:53:28', '1 mon -1 day +1 hour', NULL, NULL);

CREATE TABLE vals.texts (
    n int GENERATED ALWAYS AS IDENTITY, t text, v varchar(5), c char(5), q "char", nm name, b bytea, bits bit(5), vbits bit varying
);
INSERT INTO vals.texts (t, v, c, q, nm, b, bits, vbits) VALUES
    ('', '', '', '', '', '', B'00000', B''),
    (E'\\N', E'\\.', 'a  ', 'a', 'name', '\x00', B'10101', B'1'),
    (E'tab\tnew\nline\rcr\bbell\x01\x7f', '\N', '  a', E'\\', E'q"\n', '\x5c4e0a5c2e0a00ff', B'11111', repeat('10', 1000)::bit varying),
    (E'\\.\n\\.\n', '\.', NULL, '"', repeat('é', 31), decode(repeat('5c', 100), 'hex'), NULL, NULL),
    (U&'caf\00E9 cafe\0301 \+01F600 \200B\2028', 'äöü', 'ß', E'\x7f', 'x', '\xdeadbeef', B'00001', B'01'),
    (repeat(E'"\\'' ', 5000), NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE vals.arrays (a int[], aa text[][], m vals.mood[], p vals.pair[], d vals.evens, fixed int[3], c char(3)[], j jsonb[]);
INSERT INTO vals.arrays VALUES
    ('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
    ('[-2:0]={1,NULL,3}', '[5:6][0:1]={{"NULL",NULL},{"a,b","\""}}', ARRAY['', 'NULL', NULL]::vals.mood[], ARRAY[(1, 'x')::vals.pair, NULL, (NULL, '')::vals.pair],
     '{2,4}', '{1,2,3,4}', '{a,"b ",NULL}', ARRAY['null'::jsonb, NULL]),
    ('{{{1}},{{2}}}', ARRAY[[E'\\', '{}'], [' lead', 'trail ']], NULL, NULL, NULL, NULL, NULL, ARRAY['{"a": [1, "\"\\u00e9"]}'::jsonb]);

CREATE TABLE vals.composites (p vals.pair, n vals.nest, h vals.hollow, whole vals.texts, po vals.pair_of, se vals.small_even);
INSERT INTO vals.composites (p, n, h, whole, po) VALUES
    (ROW(NULL, NULL), ROW(ROW(1, '"),('), ARRAY[ROW(2, E'\\')]::vals.pair[], 'ha"ppy'), ROW(), (SELECT whole FROM vals.texts AS whole WHERE n = 3), ROW(1, 'x')),
    (NULL, ROW(NULL, NULL, NULL), NULL, NULL, NULL),
    (ROW(0, ''), NULL, ROW(), ROW(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), NULL);

CREATE TABLE vals.ranges (
    i int4range, b int8range, n numrange, d daterange, t tsrange, z tstzrange, f vals.float_range, x vals.text_range,
    im int4multirange, tm tstzmultirange, fm vals.floats, ir int4range[]
);
INSERT INTO vals.ranges VALUES
    ('empty', '(,)', '[1.5,1.5]', '[2026-01-01,infinity]', '(-infinity,infinity)', '(,2026-01-01 00:00+00]', '[-Infinity,NaN)', '["a,b","c\"d")', '{}', '{}', '{}', '{}'),
    ('(,5)', '[5,)', '(0,NaN)', '(,)', 'empty', '[2026-01-01 00:00+02,2026-01-01 00:00+01)', '[-0,0]', '[,""]', '{[1,3),[5,8),(,0)}', '{(,)}', '{[1.5,2.5],(3,4)}', '{"[1,2)",empty,NULL}'),
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE vals.documents (j json, jb jsonb, p jsonpath, v tsvector, q tsquery);
INSERT INTO vals.documents VALUES
    ('{"b": 1,  "a":2, "a" : 3}', '{"b": 1.0, "a": 1e3, "é": "\u0001\"\\", "": null}', 'strict $."a b"[*] ? (@.x > 1 && @ like_regex "^\\d" flag "i")', $$'it''s':1A,5B 'fat':2 'a\\b'$$, $$'it''s':AB & !( 'fat' <-> 'ra t' | x:* )$$),
    (' [1 , 2] ', '[]', '$', '', ''),
    ('null', 'null', 'lax $[0 to last]', 'x:16383', 'a <3> b'),
    ('"\ud83d\ude00"', to_jsonb(repeat('x', 300000)), NULL, NULL, NULL);

CREATE TABLE vals.places (
    p point, l line, s lseg, b box, pa path, po polygon, c circle, i inet, ci cidr, m macaddr, m8 macaddr8
);
INSERT INTO vals.places VALUES
    ('(NaN,Infinity)', '{1,-1,0}', '[(0,0),(1,1)]', '(2,2),(1,1)', '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>', '192.168.1.5/24', '10/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05'),
    ('(-0,1e-300)', '{0,1,5}', '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0),(1,1))', '((0,0))', '<(1e300,-1e300),0>', '::ffff:1.2.3.4', '2001:db8::/32', 'ffffffffffff', '00:00:00:00:00:00:00:00');

CREATE TABLE vals.identifiers (
    u uuid, l pg_lsn, x xid8, x4 xid, ci cid, t tid, sn pg_snapshot, c regclass, p regproc, pp regprocedure, op regoper, opp regoperator,
    ty regtype, ns regnamespace, ro regrole, co regcollation, tc regconfig, td regdictionary, acl aclitem, ov oidvector, iv int2vector, rc refcursor
);
INSERT INTO vals.identifiers VALUES
    ('00000000-0000-0000-0000-000000000000', 'FFFFFFFF/FFFFFFFF', '18446744073709551615', '4294967295', '1', '(4294967295,65535)', '10:20:10,14,15',
     'vals.texts', 'vals.is_even', 'vals.is_even(int)', 'pg_catalog.||/', '*(integer,integer)', 'vals.mood[]', 'vals', '"zoo Odd ""role""; --"', '"C"', 'english', 'simple',
     'zoo_keeper=r*w/postgres', '1 2 3', '1 -2 3', 'a cursor'),
    (NULL, '0/0', '0', '0', '0', '(0,0)', '1:1:', '4294967290', '-', '-', '0', '0', '-', '-', '-', '-', '-', '-', NULL, '', '', '');
