-- What the log knows of a record; it stands behind what the record holds, whatever the order of declaration.
CREATE TABLE clicks (
  part INT NOT NULL METADATA FROM 'partition',
  user_id TEXT NOT NULL,
  place BIGINT METADATA FROM 'offset_id',
  written BIGINT METADATA FROM 'timestamp',
  happened TIMESTAMP NOT NULL METADATA FROM 'timestamp',
  subject TEXT METADATA FROM 'topic',
  key_bytes BYTEA METADATA FROM 'key',
  key_text TEXT METADATA FROM 'key',
  WATERMARK FOR happened
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE counts (part INT, subject TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink');
INSERT INTO counts
SELECT part, subject, count(*) FROM clicks WHERE key_text <> 'test' AND place > 5 GROUP BY tumble(INTERVAL '1 second'), part, subject;
