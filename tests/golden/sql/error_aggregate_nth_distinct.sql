INSERT INTO emoji_counts
SELECT window.start, window.end, room, second, 1, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room,
             nth_value(DISTINCT emoji_type, 2 ORDER BY emoji_type) AS second
      FROM reactions GROUP BY window, room);
