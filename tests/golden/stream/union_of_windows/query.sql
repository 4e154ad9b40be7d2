CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n FROM reactions GROUP BY 1)
UNION ALL
SELECT window.start, window.end, n
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window, count(*) AS n FROM reactions GROUP BY 1)
UNION ALL
SELECT window.start, window.end, n
FROM (SELECT session(INTERVAL '1 second') AS window, count(*) AS n FROM reactions GROUP BY 1);
