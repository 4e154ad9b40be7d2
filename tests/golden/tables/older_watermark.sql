CREATE TABLE a (
  at TIMESTAMP NOT NULL, n INT,
  wm TIMESTAMP GENERATED ALWAYS AS (at - INTERVAL '3 seconds') STORED
) WITH (connector = 'kafka', type = 'source', event_time_field = 'at', watermark_field = 'wm');
CREATE TABLE b (at TIMESTAMP NOT NULL) WITH (connector = 'kafka', type = 'source', event_time_field = 'at');
CREATE TABLE counts (wm TIMESTAMP, n BIGINT) WITH (connector = 'kafka', type = 'sink');
INSERT INTO counts SELECT max(wm), sum(n) FROM a GROUP BY tumble(INTERVAL '1 second');
