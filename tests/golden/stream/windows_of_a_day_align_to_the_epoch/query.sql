CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, n FROM (SELECT tumble(INTERVAL '1 day') AS window, count(*) AS n FROM reactions GROUP BY window);
