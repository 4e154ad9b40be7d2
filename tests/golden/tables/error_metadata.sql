CREATE TABLE a (x INT METADATA FROM 'partitoin') WITH (connector = 'kafka', type = 'source');
CREATE TABLE b (x BIGINT METADATA FROM 'partition', y TEXT METADATA FROM 'timestamp') WITH (connector = 'kafka', type = 'source');
CREATE TABLE c (x BYTEA NOT NULL METADATA FROM 'key') WITH (connector = 'kafka', type = 'source');
CREATE TABLE d (x TEXT METADATA FROM 'topic') WITH (connector = 'kafka', type = 'sink');
CREATE TABLE e (x TEXT METADATA FROM 'topic', at TIMESTAMP NOT NULL, WATERMARK FOR at)
WITH (connector = 'single_file', type = 'source', path = 'x.jsonl');
CREATE TABLE f (x TEXT DEFAULT 'x' METADATA FROM 'topic') WITH (connector = 'kafka', type = 'source');
CREATE TABLE g (x TEXT METADATA FROM 'topic' GENERATED ALWAYS AS (y), y TEXT) WITH (connector = 'kafka', type = 'source');
CREATE TABLE h (x TEXT METADATA 'topic') WITH (connector = 'kafka', type = 'source');
CREATE TABLE i (x TEXT METADATA FROM topic) WITH (connector = 'kafka', type = 'source');
