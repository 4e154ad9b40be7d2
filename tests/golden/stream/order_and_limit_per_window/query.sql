CREATE TABLE answer (starts TIMESTAMP, emoji TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, emoji_type, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY window, emoji_type)
ORDER BY n, emoji_type DESC LIMIT 2;
