-- Every order gets the argument as its last word; not beside DISTINCT, where it is the only one.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emojis || second || array_to_string(users, ','), nth, p95
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room,
             string_agg(emoji_type, ',' ORDER BY timestamp) AS emojis,
             string_agg(DISTINCT emoji_type, ',' ORDER BY emoji_type DESC) AS second,
             array_agg(user_id ORDER BY user_id) AS users,
             nth_value(character_length(user_id), 2 ORDER BY timestamp) AS nth,
             approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY character_length(user_id)) AS p95
      FROM reactions GROUP BY window, room);
