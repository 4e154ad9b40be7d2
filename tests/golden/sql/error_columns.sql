CREATE TABLE a (
  t TIMESTMP NOT NULL,
  u VARCHAR(20),
  v DECIMAL(5, 2),
  w TIMESTAMP WITH TIME ZONE,
  x INT DEFAULT 'one',
  y INT DEFAULT 3000000000,
  z TEXT DEFAULT now(),
  z TEXT DEFAULT 1,
  q TIMESTAMP DEFAULT 'yesterday',
  p TIMESTAMP DEFAULT current_timestamp,
  o TEXT NOT NULL DEFAULT NULL,
  n BIGINT METADATA FROM 'offset_id',
  m BIGINT GENERATED ALWAYS AS (x + 1) STORED,
  WATERMARK FOR t
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE b (x TEXT DEFAULT 'x') WITH (connector = 'kafka', type = 'sink');
