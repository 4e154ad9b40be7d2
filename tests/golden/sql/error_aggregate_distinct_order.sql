INSERT INTO emoji_counts
SELECT window.start, window.end, room, array_to_string(users, ','), 1, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, array_agg(DISTINCT user_id ORDER BY timestamp) AS users
      FROM reactions GROUP BY window, room);
