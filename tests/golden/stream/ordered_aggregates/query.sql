CREATE TABLE answer (starts TIMESTAMP, first TEXT, last TEXT, names TEXT, median DOUBLE)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, first, last, names, middle
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, first_value(user_id ORDER BY timestamp) AS first,
             last_value(user_id ORDER BY timestamp) AS last,
             array_to_string(array_agg(user_id ORDER BY timestamp DESC), ' ') AS names,
             median(character_length(emoji_type || room)) AS middle
      FROM reactions GROUP BY window);
