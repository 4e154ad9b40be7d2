CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, room TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, room, n
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY window, room);
