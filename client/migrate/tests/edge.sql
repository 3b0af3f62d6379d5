-- What real schemas have and the sample database lacks. Everything here can be imported.

CREATE TABLE documents (
    id uuid PRIMARY KEY,
    body json,
    indexed jsonb,
    page xml
);
INSERT INTO documents VALUES
    ('00000000-0000-0000-0000-000000000000', '{"b": 1,  "a": [null, 1.50]}', '{"b": 1, "a": [null, 1.50]}', '<a>1</a>'),
    ('ffffffff-ffff-ffff-ffff-ffffffffffff', '"\u00e9"', '"\u00e9\t\\"', NULL),
    ('80000000-0000-4000-8000-000000000001', 'null', 'null', NULL),
    ('7fffffff-ffff-4fff-bfff-fffffffffffe', NULL, '123456789012345678901234567890.0001', NULL);

CREATE TABLE floats (f float8 PRIMARY KEY, g float4);
INSERT INTO floats VALUES
    ('NaN', 'NaN'), ('Infinity', 'Infinity'), ('-Infinity', '-Infinity'), ('-0', '-0'), (1e-300, 1.1), (-1e-300, -1.1),
    (0.1, 0.1), (5e-324, 1e-45), (-1.7976931348623157e308, 3.4028235e38), (1, 65504), (-2, 5.9604645e-08), (100000, 16777217);
CREATE TABLE small_floats (f float4 PRIMARY KEY);
INSERT INTO small_floats VALUES ('NaN'), ('-Infinity'), ('Infinity'), (0), (1.1), (-1.1), (1e-45), (-3.4028235e38);

CREATE TABLE words (word text PRIMARY KEY, n int);
INSERT INTO words SELECT w, row_number() OVER () FROM unnest(ARRAY['', 'a', 'A', 'b', 'Zürich', 'zebra', 'éa', 'e', 'ea', 'Ω',
    '日本', E'tab\tnew\nline\\', '\N', '\.', '"', '''', '🙂', E'\x01', 'a b', 'a-b', 'ab', 'aB', ' ', '  ', ',', '{}']) AS w;

CREATE TABLE arrays (
    id int PRIMARY KEY,
    ints int[], texts text[], dates date[], numbers numeric[], uuids uuid[], stamps timestamptz[],
    ranges int4range[], networks inet[], bytes bytea[], bools bool[], boxes box[], docs jsonb[]
);
INSERT INTO arrays (id, ints) VALUES (1, '{}'), (2, '{1,NULL,-3}'), (3, '[0:2]={1,2,NULL}'), (4, '{{1,2},{3,4}}'),
    (5, '[-1:0][2:3]={{1,2},{3,4}}'), (6, NULL), (7, '{NULL}');
INSERT INTO arrays VALUES (8, '{1}', ARRAY['', 'NULL', NULL, 'a"b\c', '{,}', E'\n\t', 'é'], '{2022-01-01,infinity,0044-03-15 BC}',
    '{NaN,1.50,-0.001,Infinity}', '{00000000-0000-0000-0000-000000000001}', '{"2022-01-01 00:00:00+02",-infinity}',
    '{"[1,5)",empty,NULL}', '{10.0.0.1/8,::1}', ARRAY['\x00ff'::bytea, ''], '{t,f,NULL}', '{(1,1),(0,0);(2,2),(1,1)}',
    ARRAY['{"a": "}"}', 'null', NULL]::jsonb[]);

-- Values that are stored out of line.
CREATE TABLE large (id bigint PRIMARY KEY, body text, bytes bytea);
INSERT INTO large SELECT i, (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 3000) j),
    decode((SELECT string_agg(md5((i * 7000 + j)::text), '') FROM generate_series(1, 3000) j), 'hex')
    FROM generate_series(1, 5) i;

CREATE TABLE numbers (n numeric PRIMARY KEY, other numeric(10, 2), tiny int2, big int8, o oid, cash money);
INSERT INTO numbers VALUES
    ('NaN', 'NaN', -32768, -9223372036854775808, 0, -1.5), ('Infinity', 0, 32767, 9223372036854775807, 4294967295, 1234567.89),
    ('-Infinity', -1.5, 0, 0, 1, 0), (0.000, 0.00, 1, 1, 1, 0), (1.00, 1, 1, 1, 1, 1), (1.000001, NULL, 1, 1, 1, 1),
    (-1.00, 1, 1, 1, 1, 1), (-1.000001, 1, 1, 1, 1, 1), (10000, 1, 1, 1, 1, 1), (9999, 1, 1, 1, 1, 1), (0.0001, 1, 1, 1, 1, 1),
    (1e131071, 1, 1, 1, 1, 1), (-1e131071, 1, 1, 1, 1, 1), (1e-16383, 1, 1, 1, 1, 1), (-1e-16383, 1, 1, 1, 1, 1),
    (12345678901234567890123456789012345678901234567890.12345678901234567890, 1, 1, 1, 1, 1);
INSERT INTO numbers SELECT (i - 1000) * 0.0173 + 0.00001, i FROM generate_series(1, 2000) i;

CREATE TYPE colour AS ENUM ('red', 'green', 'blue', 'Ärger, "quoted"');
CREATE DOMAIN percent AS numeric(5, 2) CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN small_percent AS percent CHECK (VALUE < 50);
CREATE DOMAIN tags AS text[];
CREATE TYPE pair AS (a int, b text, c timestamptz);
CREATE TABLE composite_keys (
    tenant char(8), shade colour, day date, at timestamptz, raw bytea, flag bool, share small_percent,
    at_local timestamp, clock time, labels tags, both_ pair, pairs pair[], shades colour[], shares percent[],
    PRIMARY KEY (shade, tenant, day, at, raw, flag, share, clock)
);
INSERT INTO composite_keys VALUES
    ('a', 'red', 'infinity', 'infinity', '\x', true, 1.50, '-infinity', '24:00', '{a,NULL}', '(1,"x,y",2022-01-01 00:00:00+00)',
     ARRAY[ROW(1, 'a"b', NULL)::pair, NULL], '{red,NULL,"Ärger, \"quoted\""}', '{1.5,NULL}'),
    ('a', 'green', '-infinity', '-infinity', '\x00', false, 1.5, 'infinity', '00:00', '{}', NULL, '{}', '{}', '{}'),
    ('a ', 'blue', '0044-03-15 BC', '0044-03-15 10:00:00+00 BC', '\x00ff00', false, 0, '0044-03-15 10:00:00 BC', '23:59:59.999999', NULL, NULL, NULL, NULL, NULL),
    ('ab', 'blue', '5874897-12-31', '294276-12-31 23:59:59.999999+00', '\xff', false, 0, '294276-12-31 23:59:59.999999', '12:00', NULL, NULL, NULL, NULL, NULL),
    ('ab', 'Ärger, "quoted"', '4713-01-01 BC', '4713-01-01 00:00:00+00 BC', '\xff', false, 0, '4713-01-01 00:00:00 BC', '12:00', NULL, NULL, NULL, NULL, NULL);

CREATE TABLE times (id int PRIMARY KEY, i interval, tz timetz, zone timestamptz);
INSERT INTO times VALUES (1, '1 year -2 mons 3 days -04:05:06.789', '10:00:00+05:30', '2022-06-01 12:00:00.123456+09'),
    (2, '-178000000 years', '24:00:00-15:59:59', '1970-01-01 00:00:00+00'), (3, '0', '00:00:00+00', NULL),
    (4, '-0.000001 seconds', '23:59:59.999999-08', NULL), (5, '2562047788 hours', NULL, NULL), (6, '1 mon -1 days', NULL, NULL),
    (7, '-1 years -1 mons', NULL, NULL);

CREATE TABLE others (
    id int PRIMARY KEY, net cidr, mac macaddr, bits bit varying, p point, poly polygon, ts tsvector, q tsquery,
    r numrange, mr int4multirange, period tstzrange, lsn pg_lsn, letter "char", fixed char(5), n name, j jsonpath, cls regclass,
    twice int GENERATED ALWAYS AS (id * 2) STORED
);
INSERT INTO others VALUES (1, '10.0.0.0/8', '08:00:2b:01:02:03', B'1011', '(1.5,-0)', '((0,0),(1,1),(1,0))', 'a fat cat:1A', 'fat & !rat',
    '[1.5,)', '{[1,3),[5,7)}', '["2022-01-01 00:00:00+02",infinity)', '16/B374D848', 'x', 'ab', 'a name', '$.a[*]', 'others'),
    (2, NULL, NULL, B'', NULL, NULL, '', NULL, 'empty', '{}', NULL, NULL, '', '', '', NULL, NULL);

CREATE SCHEMA "Odd.Schema";
CREATE TABLE "Odd.Schema"."tab""le É" ("Id.1" int PRIMARY KEY, "select" text, "a ""quoted"" column" text, "ü" int);
INSERT INTO "Odd.Schema"."tab""le É" VALUES (1, 'x', 'y', 2), (-1, NULL, NULL, NULL);

CREATE TABLE empty (id int PRIMARY KEY, t text);
CREATE TABLE key_only (b bytea PRIMARY KEY);
INSERT INTO key_only SELECT decode(lpad(to_hex(i), 4, '0'), 'hex') FROM generate_series(0, 599) i;

-- Partitions with their columns in another order, with a dropped column, and one below another.
CREATE TABLE events (id bigint, at date, name text, PRIMARY KEY (at, id) INCLUDE (name)) PARTITION BY RANGE (at);
CREATE TABLE events_old (name text, at date NOT NULL, gone int, id bigint NOT NULL);
ALTER TABLE events_old DROP COLUMN gone;
ALTER TABLE events ATTACH PARTITION events_old FOR VALUES FROM (MINVALUE) TO ('2022-01-01');
CREATE TABLE events_new PARTITION OF events FOR VALUES FROM ('2022-01-01') TO (MAXVALUE) PARTITION BY HASH (id);
CREATE TABLE events_new_0 PARTITION OF events_new FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_new_1 PARTITION OF events_new FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO events SELECT i, date '2021-12-01' + i % 60, 'event ' || i FROM generate_series(1, 1000) i;

-- A child of the old inheritance is a table of its own; its rows are not its parent's.
CREATE TABLE parent (id int PRIMARY KEY, t text);
CREATE TABLE child (more text, PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO parent VALUES (1, 'parent');
INSERT INTO child VALUES (1, 'child', 'more'), (2, 'child', 'more');

-- Not tables.
CREATE VIEW a_view AS SELECT * FROM words;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM words;
CREATE SEQUENCE a_sequence;

-- Text whose order is not that of its bytes, and whose equality is not either.
CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE sorted_words (word text COLLATE "en-x-icu" PRIMARY KEY);
INSERT INTO sorted_words SELECT word FROM words;
CREATE TABLE folded_words (word text COLLATE folded, n int, PRIMARY KEY (word, n));
INSERT INTO folded_words SELECT word, n FROM words;
