-- Every type, under every name that it has, with every form of DEFAULT.
CREATE TABLE given (
  a TEXT DEFAULT 'it''s', b VARCHAR, c STRING,
  d TIMESTAMP NOT NULL DEFAULT now(), e TIMESTAMP DEFAULT '2026-01-31 18:30:00+01:00',
  f INT DEFAULT -2147483648, g INTEGER, h BIGINT DEFAULT 9223372036854775807,
  i INT UNSIGNED DEFAULT 4294967295, j BIGINT UNSIGNED DEFAULT 18446744073709551615,
  k FLOAT, l REAL DEFAULT -0.5, m DOUBLE, n DOUBLE PRECISION DEFAULT 1e9,
  o BOOLEAN DEFAULT true, p BYTEA DEFAULT X'00fF',
  q DECIMAL(10, 2) DEFAULT 12.5, r DECIMAL(38,38), s NUMERIC(5) DEFAULT -7,
  t TEXT[] DEFAULT ARRAY['a', NULL], u BIGINT[] DEFAULT ARRAY[], v TIMESTAMP[], w BYTEA[], x BOOLEAN[],
  y ARRAY<INT>,
  WATERMARK FOR d AS (d - INTERVAL '500 milliseconds')
) WITH (connector = 'kafka', type = 'source');

CREATE TABLE written (
  a TEXT, f DECIMAL(20, 4), h DOUBLE, p BYTEA, q DECIMAL(12, 2), t TEXT[], u DOUBLE[]
) WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO written
SELECT a, sum(f), h, p, sum(q), array_agg(a), u FROM given GROUP BY tumble(INTERVAL '1 second'), a, h, p, u;
