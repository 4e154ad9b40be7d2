CREATE TABLE answer (starts TIMESTAMP, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, n FROM (SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n FROM reactions GROUP BY window);
