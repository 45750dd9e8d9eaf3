-- What defines a database besides its rows: an object a line, its name and the SQL that makes it. Comparable between
-- servers of one major version (they write views differently), and read with an empty search_path, so that every name
-- is written in full. NOT NULL is told with its column: PostgreSQL 18 makes a constraint of it.
WITH own AS (
    SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
)
SELECT format('relation %s', oid::regclass),
       concat_ws(' ', relkind, relowner::regrole, relacl, relrowsecurity, pg_get_expr(relpartbound, oid)) FROM own
UNION ALL
SELECT format('column %s.%s', own.oid::regclass, a.attname),
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid))
FROM own JOIN pg_attribute a ON a.attrelid = own.oid LEFT JOIN pg_attrdef d ON d.adrelid = own.oid AND d.adnum = a.attnum
WHERE own.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('constraint %s.%s', k.conrelid::regclass, k.conname), pg_get_constraintdef(k.oid)
FROM own JOIN pg_constraint k ON k.conrelid = own.oid
WHERE k.contype NOT IN ('n', 't') AND k.conparentid = 0 -- a partition's share of a constraint is named by chance
UNION ALL
SELECT format('index %s', oid::regclass), pg_get_indexdef(oid) FROM own WHERE relkind IN ('i', 'I')
UNION ALL
SELECT format('view %s', oid::regclass), pg_get_viewdef(oid) FROM own WHERE relkind IN ('v', 'm')
UNION ALL
SELECT format('trigger %s.%s', t.tgrelid::regclass, t.tgname), pg_get_triggerdef(t.oid)
FROM own JOIN pg_trigger t ON t.tgrelid = own.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT format('policy %s.%s', p.polrelid::regclass, p.polname), concat_ws(' ', p.polcmd, pg_get_expr(p.polqual, p.polrelid))
FROM own JOIN pg_policy p ON p.polrelid = own.oid
UNION ALL
SELECT format('function %s', p.oid::regprocedure), pg_get_functiondef(p.oid)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prokind <> 'a'
UNION ALL
SELECT format('enum %s', enumtypid::regtype), string_agg(enumlabel, ', ' ORDER BY enumsortorder) FROM pg_enum GROUP BY enumtypid
UNION ALL
SELECT format('sequence %I.%I', schemaname, sequencename),
       concat_ws(' ', data_type, start_value, min_value, max_value, increment_by, cycle, cache_size) FROM pg_sequences
UNION ALL
SELECT format('comment %s %s', i.type, i.identity), d.description
FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
WHERE i.schema IS DISTINCT FROM 'pg_catalog' AND i.identity !~ '^(pg_catalog|information_schema)\.' AND d.objoid >= 16384
UNION ALL
SELECT 'database', concat_ws(' ', d.datdba::regrole, pg_encoding_to_char(d.encoding), d.datcollate, s.setconfig,
                             shobj_description(d.oid, 'pg_database'))
FROM pg_database d LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0
WHERE d.datname = current_database()
