INSERT INTO emoji_counts
SELECT window.start, window.end, room, first, 1, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, nth_value(emoji_type, 0 ORDER BY timestamp) AS first
      FROM reactions GROUP BY window, room);
