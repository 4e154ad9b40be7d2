CREATE TABLE answer (starts TIMESTAMP, emojis TEXT, third TEXT, second_last TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, emojis, third, second_last
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window,
             string_agg(emoji_type, '' ORDER BY timestamp) AS emojis,
             nth_value(user_id, 3 ORDER BY timestamp DESC, room) AS third,
             nth_value(user_id, -2 ORDER BY timestamp DESC) AS second_last
      FROM reactions GROUP BY window);
