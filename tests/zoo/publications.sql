-- What is published. Subscriptions are not here: pg_dump shows them to superusers only.
CREATE SCHEMA published; CREATE SCHEMA "published too";
CREATE TABLE published.some (id int PRIMARY KEY, a text, b text);
CREATE TABLE published.parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE published.parted_1 PARTITION OF published.parted FOR VALUES FROM (0) TO (10);
INSERT INTO published.some VALUES (1, 'a', 'b'); INSERT INTO published.parted VALUES (1);
CREATE PUBLICATION zoo_everything FOR ALL TABLES WITH (publish = 'insert, truncate');
CREATE PUBLICATION zoo_columns FOR TABLE published.some (id, a) WHERE (id > 0 AND a <> 'it''s'), TABLE ONLY published.parted WITH (publish_via_partition_root = true);
CREATE PUBLICATION "zoo ""Schemas""" FOR TABLES IN SCHEMA published, "published too";
CREATE PUBLICATION zoo_nothing;
ALTER PUBLICATION zoo_nothing OWNER TO zoo_keeper;
COMMENT ON PUBLICATION zoo_columns IS 'a publication';
