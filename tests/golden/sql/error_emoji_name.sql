INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_nam(emoji_type), count, count
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type);
