INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type HAVING count(*) > 2)
ORDER BY count DESC, emoji_type LIMIT 5;
