CREATE TABLE answer (starts TIMESTAMP, place TEXT, n BIGINT, adas BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, place, n, adas
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, place, count(*) AS n, count(*) FILTER (WHERE user_id = 'ada') AS adas
      FROM (SELECT concat(room, '!') AS place, user_id, emoji_type FROM reactions WHERE emoji_type <> '🎉') AS s
      WHERE place <> 'side!' GROUP BY window, place);
