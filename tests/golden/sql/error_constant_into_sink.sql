CREATE TABLE small (at TIMESTAMP, n INT) WITH (connector = 'kafka', type = 'sink');
INSERT INTO small SELECT window.end, 5000000000
FROM (SELECT tumble(INTERVAL '2 seconds') AS window FROM reactions GROUP BY window);
