-- Computed row by row from what a record holds, and seen like any other column.
CREATE TABLE clicks (
  price DOUBLE GENERATED ALWAYS AS (cents / 100.0) STORED,
  user_id TEXT NOT NULL,
  cents INT NOT NULL,
  short TEXT GENERATED ALWAYS AS (upper(left(user_id, 3))),
  part INT METADATA FROM 'partition',
  evenly BOOLEAN GENERATED ALWAYS AS (part % 2 = 0),
  at TIMESTAMP NOT NULL,
  WATERMARK FOR at
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE sums (short TEXT, spent DOUBLE) WITH (connector = 'kafka', type = 'sink');
CREATE TABLE everything (a DOUBLE, b TEXT, c INT, d TEXT, e INT, f BOOLEAN, g TIMESTAMP, n BIGINT)
WITH (connector = 'blackhole');
CREATE VIEW even AS SELECT * FROM clicks WHERE evenly;
INSERT INTO sums SELECT short, sum(price) FROM even AS e WHERE e.price > 1 GROUP BY tumble(INTERVAL '1 second'), short;
