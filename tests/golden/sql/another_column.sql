CREATE TABLE plays (
  "timestamp" TIMESTAMP NOT NULL DEFAULT now(), count INT UNSIGNED DEFAULT 7, team TEXT DEFAULT 'home',
  weight DOUBLE NOT NULL DEFAULT -1.5, fair BOOLEAN DEFAULT true, at TIMESTAMP DEFAULT '2026-01-01T00:00:00Z',
  WATERMARK FOR timestamp
) WITH (connector = 'kafka', type = 'source');
CREATE TABLE play_counts ("end" TIMESTAMP, count BIGINT, total BIGINT UNSIGNED, team TEXT)
WITH (connector = 'kafka', type = 'sink', topic = 'plays.counted', 'sink.key_field' = 'team');
INSERT INTO play_counts
SELECT window.end, count(*), sum(count), team
FROM (SELECT tumble(INTERVAL '1 minute') AS window, count, team, timestamp FROM plays WHERE fair)
WHERE timestamp > '2026-01-01'
GROUP BY window, team;
