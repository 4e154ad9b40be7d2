CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, n BIGINT, first TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, n, first
FROM (SELECT hop(INTERVAL '5 seconds', INTERVAL '10 seconds') AS window, count(*) AS n, min(user_id) AS first FROM reactions GROUP BY window);
