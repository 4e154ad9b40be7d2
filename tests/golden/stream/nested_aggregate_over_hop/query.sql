CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, emojis BIGINT, most BIGINT, total BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, count(*), max(n), sum(n)
FROM (SELECT hop(INTERVAL '2 seconds', INTERVAL '4 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY window, emoji_type)
GROUP BY window;
