CREATE TABLE answer (starts TIMESTAMP, room TEXT, emoji TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, emoji_type, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS n
      FROM reactions GROUP BY window, room, emoji_type HAVING count(*) > 1);
