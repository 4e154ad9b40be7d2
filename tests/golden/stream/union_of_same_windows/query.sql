CREATE TABLE answer (starts TIMESTAMP, kind TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2)
UNION ALL
SELECT window.start, emoji_type, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions WHERE room = 'main' GROUP BY 1, 2);
