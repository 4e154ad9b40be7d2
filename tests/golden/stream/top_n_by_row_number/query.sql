CREATE TABLE answer (starts TIMESTAMP, room TEXT, emoji TEXT, n BIGINT, place BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, emoji_type, n, place
FROM (SELECT *, row_number() OVER (PARTITION BY window ORDER BY n DESC, room, emoji_type) AS place
      FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS n
            FROM reactions GROUP BY window, room, emoji_type))
WHERE place <= 2;
