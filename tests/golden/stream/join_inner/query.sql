CREATE TABLE answer (starts TIMESTAMP, room TEXT, x BIGINT, other TEXT, y BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT coalesce(a.window, b.window).start, a.room, a.n, b.room, b.n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions WHERE emoji_type = 'x' GROUP BY 1, 2) a
INNER JOIN (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions WHERE emoji_type = 'y' GROUP BY 1, 2) b
ON a.window = b.window AND a.room = b.room;
