CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, room TEXT, n BIGINT, people BIGINT, first TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, room, n, people, first
FROM (SELECT hop(INTERVAL '30 seconds', INTERVAL '5 minutes') AS window, room, count(*) AS n, count(DISTINCT user_id) AS people, min(user_id) AS first FROM reactions GROUP BY window, room);
