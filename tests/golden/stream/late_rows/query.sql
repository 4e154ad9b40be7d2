CREATE TABLE answer (starts TIMESTAMP, n BIGINT, names TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, n, names
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n, array_to_string(array_agg(user_id ORDER BY user_id), ' ') AS names
      FROM reactions WHERE emoji_type = '😀' GROUP BY window);
