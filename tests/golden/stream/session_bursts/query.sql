CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, room TEXT, n BIGINT, names TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, room, n, names
FROM (SELECT session(INTERVAL '2 seconds') AS window, room, count(*) AS n,
             array_to_string(array_agg(user_id ORDER BY user_id), ' ') AS names FROM reactions GROUP BY window, room);
