INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, CASE WHEN count > 1 / 0 THEN 1 ELSE 2 END
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type)
ORDER BY count DESC, emoji_type, room LIMIT 3;
