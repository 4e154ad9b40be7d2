INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type);
