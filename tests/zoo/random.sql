-- Some thousand rows of many types, drawn by the server's own dice: the session has called setseed().
CREATE SCHEMA random;
CREATE FUNCTION random.text(most int) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(string_agg(chr((ARRAY[1, 9, 10, 13, 32, 34, 39, 44, 46, 92, 97, 123, 125, 127, 233, 769, 8232, 65533, 128024])[1 + floor(random() * 19)::int]), ''), '')
    FROM generate_series(1, floor(random() * most)::int)
$$;
CREATE TABLE random.rows AS
    SELECT n, floor((random() - 0.5) * 2e9)::int AS i, ((random() - 0.5) * 10 ^ (random() * 600 - 300))::float8 AS f, ((random() - 0.5) * 10 ^ (random() * 70 - 35))::real AS r,
        (random()::numeric * 10 ^ (random() * 40 - 20)::numeric) AS d, random.text(30 + n - n) AS t, decode(md5(random()::text || n), 'hex') AS b,
        CASE WHEN random() < 0.1 THEN NULL ELSE ARRAY[random.text(4 + n - n), NULL, random.text(3 + n - n)] END AS a,
        jsonb_build_object(random.text(5 + n - n), random(), 'k', random.text(5 + n - n), 'n', NULL) AS j,
        timestamptz '1500-01-01Z' + random() * interval '700 years' AS at, (random() * 1e6 - 5e5) * interval '1 second' + (random() * 100)::int * interval '-1 month' AS iv,
        date '0100-01-01 BC' + (random() * 1e6)::int AS day, numrange((random() * 10)::numeric, NULL, (ARRAY['[]', '()', '[)'])[1 + n % 3]) AS ra,
        ('10.0.0.0'::inet + floor(random() * 1e7)::bigint) AS ip, gen_random_uuid() AS u, point(random(), -random()) AS p, floor(random() * 1e6)::int::bit(20) AS bi,
        to_tsvector('simple', random.text(20 + n - n)) AS v, '0/0'::pg_lsn + floor(random() * 1e15)::numeric AS l, (random() * 1e9)::numeric::money AS m
    FROM generate_series(1, 3000) AS n;
ALTER TABLE random.rows ADD PRIMARY KEY (n);
