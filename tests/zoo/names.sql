-- Names that a shell, a pattern, a quoting rule or a list of names gets wrong.

CREATE SCHEMA names; CREATE SCHEMA "Sch.em""a*"; CREATE SCHEMA "select"; CREATE SCHEMA " "; CREATE SCHEMA U&"sch\00E9ma"; CREATE SCHEMA U&"sche\0301ma";
CREATE SCHEMA "a"; CREATE SCHEMA "a.b"; CREATE SCHEMA "pg-like"; CREATE SCHEMA "$user";

-- The one of the requirements, in each of the schemas; its two sequences' names go beyond 63 bytes.
CREATE TABLE names."weird Table""name" ("col ""umn" serial PRIMARY KEY, "Select" text, " " int, "a.b" int, "$1" int, "%s" int, "\n" int, U&"\00E9" int, U&"e\0301" int);
INSERT INTO names."weird Table""name" ("Select") VALUES ('one'), (NULL);
CREATE TABLE "Sch.em""a*"."weird Table""name" (x serial, other int REFERENCES names."weird Table""name");
INSERT INTO "Sch.em""a*"."weird Table""name" (other) VALUES (1);

-- One dot, two readings: schema "a", table "b.c", and schema "a.b", table "c".
CREATE TABLE "a"."b.c" (x int); INSERT INTO "a"."b.c" VALUES (1);
CREATE TABLE "a.b"."c" (x int); INSERT INTO "a.b"."c" VALUES (2), (3);
CREATE SEQUENCE "a"."b.s"; SELECT setval('"a"."b.s"', 5);
CREATE SEQUENCE "a.b"."s"; SELECT setval('"a.b"."s"', 7);

-- Alike to a reader: composed and decomposed, Latin and Cyrillic, upper and lower case, with and without a blank.
CREATE TABLE U&"sch\00E9ma".U&"caf\00E9" (x int); INSERT INTO U&"sch\00E9ma".U&"caf\00E9" VALUES (1);
CREATE TABLE U&"sche\0301ma".U&"cafe\0301" (x int); INSERT INTO U&"sche\0301ma".U&"cafe\0301" VALUES (2);
CREATE TABLE names.U&"caf\00E9" (x int); INSERT INTO names.U&"caf\00E9" VALUES (3);
CREATE TABLE names.U&"cafe\0301" (x int); INSERT INTO names.U&"cafe\0301" VALUES (4);
CREATE TABLE names.users (x int); INSERT INTO names.users VALUES (1);
CREATE TABLE names."Users" (x int); INSERT INTO names."Users" VALUES (2);
CREATE TABLE names."USERS" (x int); INSERT INTO names."USERS" VALUES (3);
CREATE TABLE names."users " (x int); INSERT INTO names."users " VALUES (4);
CREATE TABLE names.U&"us\0435rs" (x int); INSERT INTO names.U&"us\0435rs" VALUES (5);

-- Seeming to be nothing.
CREATE TABLE " "." " (" " int); INSERT INTO " "." " VALUES (1);
CREATE TABLE names.U&"\200B" (x int); INSERT INTO names.U&"\200B" VALUES (1);
CREATE TABLE names.U&"\00A0" (x int); INSERT INTO names.U&"\00A0" VALUES (1);

-- Meaning something to somebody on the way.
CREATE TABLE "select"."table" ("from" int, "where" int, "primary" int); INSERT INTO "select"."table" VALUES (1, 2, 3);
CREATE TABLE names."*" (x int); INSERT INTO names."*" VALUES (1);
CREATE TABLE names."users*" (x int); INSERT INTO names."users*" VALUES (1);
CREATE TABLE names."[a-z]?" (x int); INSERT INTO names."[a-z]?" VALUES (1);
CREATE TABLE names."$(x) `y` ${z}" (x int); INSERT INTO names."$(x) `y` ${z}" VALUES (1);
CREATE TABLE names."it's; DROP TABLE names.users; --" (x int); INSERT INTO names."it's; DROP TABLE names.users; --" VALUES (1);
CREATE TABLE names."|(a|b)+.^$" (x int); INSERT INTO names."|(a|b)+.^$" VALUES (1);
CREATE TABLE names."/etc/../passwd" (x int); INSERT INTO names."/etc/../passwd" VALUES (1);
CREATE TABLE names."back\slash\" (x int); INSERT INTO names."back\slash\" VALUES (1);
CREATE TABLE names."--table=names.*" (x int); INSERT INTO names."--table=names.*" VALUES (1);
CREATE TABLE names."\restrict" (x int); INSERT INTO names."\restrict" VALUES (1);
CREATE TABLE names."\.
\." ("
" int); INSERT INTO names."\.
\." VALUES (1);
CREATE TABLE names."tab	new
line" (x int); INSERT INTO names."tab	new
line" VALUES (1);
CREATE TABLE names."-- 
\! echo" (x int); INSERT INTO names."-- 
\! echo" VALUES (1);
CREATE TABLE names."%s %(x)s {} {0}" ("%s" text, "{}" text); INSERT INTO names."%s %(x)s {} {0}" VALUES ('%s', '{}');
CREATE TABLE names."public.users" (x int); INSERT INTO names."public.users" VALUES (1);
CREATE TABLE "pg-like"."pg_class" (x int); INSERT INTO "pg-like"."pg_class" VALUES (1);
CREATE TABLE "$user"."t" ("t" text, x int); INSERT INTO "$user"."t" VALUES ('a column called as its table', 1);
CREATE TABLE names.U&"\+01F418" (x int); INSERT INTO names.U&"\+01F418" VALUES (1);

-- As long as a name can be: 63 bytes, of one byte each and of two; the second's sequence is cut within nothing.
CREATE TABLE names.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb serial PRIMARY KEY);
INSERT INTO names.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa DEFAULT VALUES;
CREATE TABLE names.äääääääääääääääääääääääääääääää (ööööööööööööööööööööööööööööööö serial UNIQUE);
INSERT INTO names.äääääääääääääääääääääääääääääää DEFAULT VALUES;

CREATE TYPE names."Type ""x""" AS ENUM ('a'); CREATE DOMAIN names."int" AS int; CREATE FUNCTION names."f; (x)"("a b" int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE names.uses ("x" names."Type ""x""", "y" names."int", z int DEFAULT names."f; (x)"(1)); INSERT INTO names.uses VALUES ('a', 1);
CREATE VIEW names."v; ""w""" AS SELECT "col ""umn" AS "from", "a.b" FROM names."weird Table""name";
CREATE INDEX "i; ""x""" ON names."weird Table""name" ("a.b"); ALTER TABLE names."weird Table""name" ADD CONSTRAINT "c; ""x""
" CHECK ("a.b" > 0);
COMMENT ON TABLE names."weird Table""name" IS E'a comment''s\nsecond line; -- \\';
