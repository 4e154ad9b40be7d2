CREATE TABLE answer (starts TIMESTAMP, users BIGINT, capped BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

-- At most two reactions of a user count in a window.
INSERT INTO answer
SELECT window.start, users, capped
FROM (SELECT tumble(INTERVAL '4 seconds') AS window, count(*) AS users, sum(CASE WHEN n > 2 THEN 2 ELSE n END) AS capped
      FROM (SELECT tumble(INTERVAL '4 seconds') AS window, user_id, count(*) AS n FROM reactions GROUP BY window, user_id)
      GROUP BY 1);
