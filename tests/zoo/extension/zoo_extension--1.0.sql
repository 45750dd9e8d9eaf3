CREATE TABLE zoo_extension.settings (id serial, name text, value text, preset boolean NOT NULL DEFAULT false);
INSERT INTO zoo_extension.settings (name, value, preset) VALUES ('theirs', 'made again', true);
SELECT pg_catalog.pg_extension_config_dump('zoo_extension.settings', 'WHERE NOT preset');
SELECT pg_catalog.pg_extension_config_dump('zoo_extension.settings_id_seq', '');
CREATE TABLE zoo_extension.cache (what text);
