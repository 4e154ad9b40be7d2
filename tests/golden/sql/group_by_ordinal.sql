INSERT INTO emoji_counts
SELECT w.window.start, w.window.end, room, emoji_type, count, 1
FROM (SELECT room, tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS count
      FROM reactions GROUP BY 2, 3, 1) AS w;
