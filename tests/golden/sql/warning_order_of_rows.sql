-- What depends on the order in which rows come.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, array_to_string(emojis, ',') || first, 1, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, array_agg(DISTINCT emoji_type) AS emojis,
             first_value(user_id) FILTER (WHERE room <> 'x') AS first, last_value(user_id ORDER BY timestamp) AS last
      FROM reactions GROUP BY window, room);
