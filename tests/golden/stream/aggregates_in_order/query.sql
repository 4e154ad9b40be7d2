CREATE TABLE answer (starts TIMESTAMP, room TEXT, emojis TEXT, few TEXT, second TEXT, last_but_one TEXT, users TEXT, first TEXT, p DOUBLE)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, room, emojis, few, second, last_but_one, users, first, p
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room,
             string_agg(emoji_type, ' ' ORDER BY timestamp DESC) AS emojis,
             string_agg(DISTINCT emoji_type, ' ' ORDER BY emoji_type) AS few,
             nth_value(user_id, 2 ORDER BY timestamp) AS second,
             nth_value(user_id, -2 ORDER BY timestamp) FILTER (WHERE emoji_type = 'x') AS last_but_one,
             array_to_string(array_agg(user_id ORDER BY emoji_type), ' ') AS users,
             first_value(user_id ORDER BY timestamp) AS first,
             percentile_cont(0.5) WITHIN GROUP (ORDER BY character_length(user_id)) AS p
      FROM reactions GROUP BY window, room);
