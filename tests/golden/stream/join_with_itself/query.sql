CREATE TABLE answer (starts TIMESTAMP, room TEXT, n BIGINT, other TEXT, m BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

-- One aggregate, read twice: each row is counted once.
INSERT INTO answer
WITH counts AS (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2)
SELECT a.window.start, a.room, a.n, b.room, b.n
FROM counts a JOIN counts b ON a.window = b.window AND a.n > b.n;
