INSERT INTO emoji_counts
SELECT window.start, window.end, first, names, people, median
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, array_to_string(array_agg(emoji_type ORDER BY timestamp DESC), ',') AS names,
         count(DISTINCT user_id) FILTER (WHERE room = 'main') AS people, median(character_length(user_id)) AS median,
         first_value(room ORDER BY timestamp) AS first
  FROM reactions
  GROUP BY window
);
