INSERT INTO emoji_counts
SELECT window.start, window.end, room, emojis, 1, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room,
             string_agg(emoji_type, room ORDER BY timestamp) AS emojis
      FROM reactions GROUP BY window, room);
