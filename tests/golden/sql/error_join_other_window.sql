-- The windows are never the same.
INSERT INTO emoji_counts
SELECT a.window.start, a.window.end, a.room, a.emoji_type, a.count, b.people
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY 1, 2, 3) a
JOIN (SELECT tumble(INTERVAL '4 seconds') AS window, room, count(DISTINCT user_id) AS people
      FROM reactions GROUP BY 1, 2) b
ON a.window = b.window AND a.room = b.room;
