INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT tumble(timestamp - timestamp) AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type);
