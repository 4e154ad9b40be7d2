-- The event time is then the log's time of each record, a second behind; no query sees that column.
CREATE TABLE clicks (user_id TEXT NOT NULL, n INT) WITH (connector = 'kafka', type = 'source');
CREATE TABLE counts (user_id TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink');
INSERT INTO counts SELECT user_id, sum(n) FROM (SELECT * FROM clicks) GROUP BY tumble(INTERVAL '1 second'), user_id;
