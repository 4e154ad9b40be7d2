INSERT INTO emoji_counts
SELECT window, count, room, emoji_type, room, true
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type);
