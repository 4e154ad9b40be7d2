CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, n BIGINT, names TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, n, names
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window, count(*) AS n,
             array_to_string(array_agg(user_id ORDER BY user_id), ' ') AS names FROM reactions GROUP BY window);
