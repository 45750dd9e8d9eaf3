-- where: EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))
-- Long values in another compression than the server's own.
CREATE SCHEMA lz4;
CREATE TABLE lz4.long (t text COMPRESSION lz4, b bytea COMPRESSION pglz);
INSERT INTO lz4.long SELECT repeat('lz4 ', 10000), convert_to(repeat('pglz', 10000), 'UTF8');
