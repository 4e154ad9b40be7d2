CREATE TABLE plays (
  team TEXT, points INT, weight DOUBLE NOT NULL DEFAULT 1.5, fair BOOLEAN, big BIGINT UNSIGNED, "when" TIMESTAMP,
  at TIMESTAMP NOT NULL, WATERMARK FOR at AS (at - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', format = 'arrow');
CREATE TABLE answer (starts TIMESTAMP, fair BOOLEAN, kind TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, fair, kind, n
FROM (SELECT tumble(INTERVAL '4 seconds') AS window, fair, CASE WHEN points > 2 THEN 'many' WHEN points <= 2 THEN 'few' END AS kind,
             count(*) AS n FROM plays GROUP BY window, fair, kind);
