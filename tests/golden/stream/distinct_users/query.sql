CREATE TABLE answer (starts TIMESTAMP, room TEXT, users BIGINT, emojis BIGINT, all_rows BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, users, emojis, n
FROM (SELECT tumble(INTERVAL '4 seconds') AS window, room, count(DISTINCT user_id) AS users,
             count(DISTINCT emoji_type) FILTER (WHERE user_id <> 'eve') AS emojis, count(*) AS n
      FROM reactions GROUP BY window, room);
