CREATE TABLE plays (
  team TEXT, points INT, weight DOUBLE NOT NULL DEFAULT 1.5, fair BOOLEAN, big BIGINT UNSIGNED, "when" TIMESTAMP,
  at TIMESTAMP NOT NULL, WATERMARK FOR at AS (at - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', format = 'arrow');
CREATE TABLE answer (starts TIMESTAMP, team TEXT, plays BIGINT, points BIGINT, weight DOUBLE, fair BOOLEAN, biggest BIGINT UNSIGNED, earliest TIMESTAMP)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, team, n, points, weight, fair, biggest, earliest
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, team, count(*) AS n, sum(points) AS points, sum(weight) AS weight,
             bool_and(fair) AS fair, max(big) AS biggest, min("when") AS earliest
      FROM plays GROUP BY window, team);
