CREATE TABLE answer (at TIMESTAMP, room TEXT, emoji TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, 'all', n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2)
UNION ALL
SELECT timestamp, room, emoji_type, 1 FROM reactions WHERE emoji_type = 'y';
