CREATE TABLE plays (
  team TEXT, points INT, weight DOUBLE NOT NULL DEFAULT 1.5, fair BOOLEAN, big BIGINT UNSIGNED, "when" TIMESTAMP,
  at TIMESTAMP NOT NULL, WATERMARK FOR at AS (at - INTERVAL '1 second')
) WITH (connector = 'kafka', type = 'source', format = 'arrow');
CREATE TABLE answer (starts TIMESTAMP, n BIGINT, known BIGINT, average DOUBLE)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, n, known, average
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n, count(team) AS known, avg(weight) AS average
      FROM plays WHERE NOT (points > 4) GROUP BY window);
