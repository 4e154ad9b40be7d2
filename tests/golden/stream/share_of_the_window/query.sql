CREATE TABLE answer (starts TIMESTAMP, emoji TEXT, n BIGINT, of_all BIGINT, share DOUBLE)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, emoji_type, n, sum(n) OVER (PARTITION BY window), round(100.0 * n / sum(n) OVER (PARTITION BY window))
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY window, emoji_type);
