INSERT INTO emoji_counts
SELECT window.start, window.end, 'main', emoji, count, 1
FROM (SELECT window, emoji, count FROM (
        SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type AS emoji, count(*) AS count
        FROM reactions GROUP BY window, room, emoji)
      WHERE room = 'main' LIMIT 3);
