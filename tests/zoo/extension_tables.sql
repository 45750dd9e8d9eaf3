-- where: EXISTS (SELECT FROM pg_settings WHERE name = 'extension_control_path')
-- An extension with tables of its own, of which one holds configuration: its rows are the owner's, its definition is not.
-- No package brings one; since 18 a server reads extensions from any directory.
CREATE EXTENSION zoo_extension;
INSERT INTO zoo_extension.settings (name, value) VALUES ('mine', 'kept'), ('mine too', E'it''s\tkept');
INSERT INTO zoo_extension.cache VALUES ('forgotten');
SELECT nextval('zoo_extension.settings_id_seq');
