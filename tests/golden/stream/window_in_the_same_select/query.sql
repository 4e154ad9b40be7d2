CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, n FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n, window.start AS s
  FROM reactions GROUP BY window HAVING window.start > '2026-01-01T00:00:01');
