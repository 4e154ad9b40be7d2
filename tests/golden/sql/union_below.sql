INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM (SELECT * FROM reactions UNION ALL SELECT * FROM reactions) GROUP BY window, room, emoji_type);
