-- where: EXISTS (SELECT FROM pg_collation WHERE collname = 'de-x-icu')
-- Collations that sort by ICU's rules, one of them without bytewise equality.
CREATE SCHEMA icu;
CREATE COLLATION icu.german_phonebook (provider = icu, locale = 'de-u-co-phonebk');
CREATE COLLATION icu.blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
COMMENT ON COLLATION icu.blind IS 'neither case nor accents';
CREATE TABLE icu.names (n text COLLATE icu.blind PRIMARY KEY, g text COLLATE icu.german_phonebook);
INSERT INTO icu.names VALUES ('Ärger', 'Ärger'), ('zorn', 'Zorn');
CREATE INDEX ON icu.names (g COLLATE icu.german_phonebook DESC);
