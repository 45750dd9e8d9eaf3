-- where: EXISTS (SELECT FROM pg_config WHERE name = 'CONFIGURE' AND setting LIKE '%--with-libxml%')
-- A server that was built without libxml has the type, and can read no value of it.
CREATE SCHEMA "xml";
CREATE TABLE "xml".documents (n int, x xml);
INSERT INTO "xml".documents VALUES
    (1, '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE a [<!ENTITY e "x">]><a b="&amp;">é &lt;</a>'),
    (2, 'content <b/> without a root'), (3, ''), (4, NULL);
CREATE VIEW "xml".parts AS SELECT xmlelement(name "A b", xmlattributes(n AS "N"), x) AS e, xpath('/a/@b', x) AS p FROM "xml".documents WHERE x IS DOCUMENT;
