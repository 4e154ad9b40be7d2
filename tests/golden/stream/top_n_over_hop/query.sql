CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, emoji TEXT, n BIGINT, place BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, window.end, emoji_type, n, place
FROM (SELECT *, row_number() OVER (PARTITION BY window ORDER BY n DESC, emoji_type) AS place
      FROM (SELECT hop(INTERVAL '2 seconds', INTERVAL '4 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY window, emoji_type))
WHERE place <= 2;
