CREATE TABLE a (x DECIMAL) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE b (x DECIMAL(39, 0), y DECIMAL(5, 6), z NUMERIC(5, -1)) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE c (x TEXT[][], y DECIMAL(5, 1)[], z BLOB[]) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE d (x SMALLINT, y JSON, z BOOLEN) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE e (x DECIMAL(4, 2) DEFAULT 1.005, y DECIMAL(4, 2) DEFAULT 100, z DECIMAL(4, 2) DEFAULT 'x')
WITH (connector = 'kafka', type = 'source');
CREATE TABLE f (x BYTEA DEFAULT 'AAA=', y BYTEA DEFAULT X'0', z BYTEA DEFAULT X'0g') WITH (connector = 'kafka', type = 'source');
CREATE TABLE g (x INT[] DEFAULT 5, y INT[] DEFAULT ARRAY['a'], z INT DEFAULT ARRAY[1]) WITH (connector = 'kafka', type = 'source');
CREATE TABLE h (at TIMESTAMP NOT NULL, t TEXT[], b BYTEA, d DECIMAL(4, 2), WATERMARK FOR at) WITH (connector = 'kafka', type = 'source');
CREATE TABLE i (a TEXT, b TEXT, c INT[], d BOOLEAN) WITH (connector = 'kafka', type = 'sink');
INSERT INTO i SELECT t, b, t, d FROM h GROUP BY tumble(INTERVAL '1 second'), t, b, d;
