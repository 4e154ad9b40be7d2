CREATE TABLE answer (starts TIMESTAMP, kind TEXT, n BIGINT, people BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

-- Each row is an input of both branches: accounted twice.
INSERT INTO answer
SELECT window.start, kind, n, people
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, kind, count(*) AS n, count(DISTINCT user_id) AS people
      FROM (SELECT user_id, 'all' AS kind FROM reactions
            UNION ALL SELECT user_id, concat('only ', emoji_type) FROM reactions WHERE room = 'main')
      GROUP BY window, kind);
